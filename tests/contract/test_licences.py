"""What longspan asks for, with any extra and all that follows from it, may be used by anyone: the licences say so."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import check_package

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: as metadata name them; those of the Mozilla Public License oblige only who changes their files
ALLOWED = re.compile(
    r"(Apache([- ](License|Software License))?([- ]2\.0|, Version 2\.0)?( WITH LLVM-exception)?"
    r"|(3-Clause )?BSD( License)?|BSD-[23]-Clause|0BSD|MIT( License)?|MIT-CMU|ISC( License \(ISCL\))?"
    r"|PSF-2\.0|Python Software Foundation License"
    r"|CNRI-Python|Zlib|CC0-1\.0|BSL-1\.0|AFL-2\.1|MPL-2\.0|Mozilla Public License 2\.0 \(MPL 2\.0\))"
)
#: whose metadata say nothing; the licence is in the file that comes with it
UNSAID = {"namex": "Apache"}


def licence_of(found):
    """The parts of what a distribution says of its licence."""
    told = found.metadata
    classifiers = [line.split(" :: ")[-1] for line in told.get_all("Classifier", []) if line.startswith("License ::")]
    said = told.get("License-Expression") or "; ".join(classifiers) or (told.get("License") or "").splitlines()[:1]
    text = said if isinstance(said, str) else "".join(said)
    return [part.strip("() ") if part.count("(") != part.count(")") else part.strip()
            for part in re.split(r" AND | OR |;", text)]  # fmt: skip


def test_licences_of_all_dependencies():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    asked = [text for group in groups for text in group if not text.startswith("longspan")]
    found = {name: one for name, _, one in check_package.tree_of(asked) if one is not None}
    assert len(found) > 100
    for name, one in found.items():
        if name in UNSAID:
            (file,) = [file for file in one.files if "LICENSE" in file.name]
            assert UNSAID[name] in file.read_text()
            continue
        for part in licence_of(one):
            assert ALLOWED.fullmatch(part), f"{name}: {part!r}"


def test_a_licence_that_binds_users_is_noticed():
    for name in ("GPL-3.0-only", "GNU Affero General Public License v3", "LGPL-2.1-or-later", "", "Proprietary"):
        assert not ALLOWED.fullmatch(name), name
