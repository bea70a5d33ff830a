"""The reliability campaign: trials by area, until a time is over; see `docs/reliability.md`."""
