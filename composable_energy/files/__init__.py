"""Files: records of a header and tensors, atomic writing, locks, paths, and how much memory there is."""

from composable_energy.files.disk import exclusive, exists, expanded, is_directory, is_file, read_bytes, real_path, replace_file
from composable_energy.files.memory import memory_of, ran_out, written_bytes
from composable_energy.files.record import ENERGY_FILE, DamagedFileError, digest_of, is_saved, read_record, record_bytes, write_record

__all__ = [
    "ENERGY_FILE",
    "DamagedFileError",
    "digest_of",
    "exclusive",
    "exists",
    "expanded",
    "is_directory",
    "is_file",
    "is_saved",
    "memory_of",
    "ran_out",
    "read_bytes",
    "read_record",
    "real_path",
    "record_bytes",
    "replace_file",
    "write_record",
    "written_bytes",
]
