"""Records the draws: `python -m tests.golden`, after a change that is meant to change them; compare the old file in distribution before."""

from tests.golden.draws import FILE, record

if __name__ == "__main__":
    record()
    print(f"{FILE}: {FILE.stat().st_size / 1e3:.0f} kB")
