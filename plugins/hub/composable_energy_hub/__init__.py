"""The Hugging Face hub: `ce.load("hf:owner/name")` and `E.push("owner/name")`, with safetensors and JSON only."""

from composable_energy_hub.download import HubAccessError, HubConnectionError, HubError, HubNotFoundError, load
from composable_energy_hub.upload import push

__all__ = ["HubAccessError", "HubConnectionError", "HubError", "HubNotFoundError", "load", "push"]
