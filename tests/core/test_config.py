"Words that files hold for settings: a class that was renamed is still found under its old one."

import json
import os
import re
from dataclasses import MISSING, fields

import pytest

from audiotag.audio.io import ReadOptions
from audiotag.core import config
from audiotag.core.config import Config, config_from_dict, read_config, require_same, set_fields
from audiotag.core.errors import AudiotagError
from audiotag.data.crops import AroundBox, CropSettings
from audiotag.data.sampling import MixPartners, RandomSubset
from audiotag.infer.ensemble import EqualWeights
from audiotag.infer.recordings import LoaderOptions
from audiotag.train.recipes import get_recipe
from audiotag.train.stage_rules import AgreementRule, PseudoLabelRule

RENAMED = {
    "Reading": ReadOptions,
    "Crops": CropSettings,
    "RowsOf": RandomSubset,
    "Partners": MixPartners,
    "Hearing": LoaderOptions,
    "Plain": EqualWeights,
    "Picked": AgreementRule,
    "Pseudo": PseudoLabelRule,
}
REQUIRED = {
    AgreementRule: dict(source="noisy", scores=("noisy",), at_least=0.5),
    PseudoLabelRule: dict(source="unlabeled", teachers=("first",)),
    RandomSubset: dict(source="negative", n=30),
}


@pytest.mark.parametrize("word", RENAMED)
def test_a_renamed_class_keeps_its_word_in_files(word):
    cls = RENAMED[word]
    made = cls(**REQUIRED.get(cls, {}))
    stored = json.loads(made.to_json())
    assert stored["kind"] == word
    assert config_from_dict(stored) == made
    with pytest.raises(AudiotagError, match="choose from") as e:
        config_from_dict({"kind": "qqqqqq"})
    assert len(str(e.value)) < 400 and str(e.value).endswith("…")
    with pytest.raises(AudiotagError, match="unknown kind"):
        config_from_dict({**stored, "kind": cls.__name__})


def test_a_base_is_no_kind():
    """Neither offered for a mistyped kind nor made from a file: a class of the package with subclasses is a base, but for
    those that are of use themselves."""
    used = {"MixUp", "Crops"}
    for word, cls in config._kinds.items():
        ours = [c for c in cls.__subclasses__() if c.__module__.startswith("audiotag.")]
        assert not ours or word in used, f"class {cls.__name__}(..., base=True)"
    for word in ("FrontEnd", "Network", "Frontend", "loss", "Schedul"):
        with pytest.raises(AudiotagError, match="unknown kind") as e:
            config_from_dict({"kind": word})
        assert set(re.findall(r"\w+", e.value.fix)).isdisjoint({"FrontEnd", "Network", "Loss", "Schedule", "Config"})


def test_every_kind_makes_the_round_trip():
    "All settings that need no argument, whatever they are called."
    made = 0
    for word, cls in list(config._kinds.items()):
        if cls.__module__.startswith("audiotag.") and not any(
            f.default is MISSING and f.default_factory is MISSING for f in fields(cls)
        ):
            try:
                one = cls()
            except AudiotagError:  # an abstract base, or a rule between fields
                continue
            assert one.to_dict()["kind"] == word and config_from_dict(json.loads(one.to_json())) == one
            assert config_from_dict(json.loads(one.to_json())).hash == one.hash
            made += 1
    assert made > 30


def test_two_classes_never_share_a_word():
    def named(module, **kind):
        return type("Plain2", (Config,), {"__module__": module}, **kind)

    first = named("somewhere")
    assert named("somewhere").kind == first.kind  # defined anew where it stands
    with pytest.raises(AudiotagError, match="two classes would be stored as 'Plain2': somewhere.Plain2 and elsewhere"):
        named("elsewhere")
    with pytest.raises(AudiotagError, match="stored as 'Plain'"):
        named("elsewhere", kind="Plain")
    assert named("elsewhere", kind="Plain3").kind == "Plain3"
    assert named("__main__").kind == "Plain2"  # in a notebook one tries a class before it is exported
    for kind in ("Plain2", "Plain3"):
        config._kinds.pop(kind)


def test_a_renamed_field_keeps_its_word_in_files():
    "`min_overlap` was `beside`: files of before open, and the hash that ties stores and bundles together stays."
    box = AroundBox(min_overlap=0.3)
    assert box.to_dict() == {"kind": "AroundBox", "shift": [32, 256], "beside": 0.3} and box.hash == "afe57c78754f7f5b"
    for word in ("beside", "min_overlap"):
        assert config_from_dict({"kind": "AroundBox", word: 0.3}) == box
        assert set_fields(AroundBox(), [(word, "0.3")]) == box
    with pytest.raises(AudiotagError, match="AroundBox has no field 'overlap'"):
        config_from_dict({"kind": "AroundBox", "overlap": 0.3})


@pytest.mark.parametrize(
    "field, text, message",
    [
        ("n_folds", "two", "field 'Recipe.n_folds': invalid value 'two': give a whole number"),
        ("stages.noisy.lr", "[1]", "field 'Stage.lr': invalid value .1..: give a number"),
        ("front_end.scaling", "small", "settings of the kind Standardize, MinMax, .* or null"),
        ("windows.hop", "1000", "field 'Windows.hop': invalid value 1000: give 1 to `frames`"),
    ],
)
def test_an_invalid_value_is_told_in_words(field, text, message):
    with pytest.raises(AudiotagError, match=message):
        set_fields(get_recipe("freesound2019"), [(field, text)])


def test_stages_that_differ_are_named():
    recipe = get_recipe("freesound2019")
    changed = set_fields(recipe, [("stages.agreed.epochs", "3")])
    with pytest.raises(AudiotagError, match="other settings: stages.agreed.epochs is 40 there and 3 here"):
        require_same(recipe, changed, where="run")


def test_a_field_that_was_added_counts_only_when_it_says_something_new():
    "At any depth; files from before it read as its default and keep their hash."
    from dataclasses import dataclass

    @dataclass(frozen=True, kw_only=True)
    class Before(Config, kind="__main__grown"):
        size: int = 3

    Before.__module__ = "__main__"

    @dataclass(frozen=True, kw_only=True)
    class After(Config, kind="__main__grown"):
        size: int = 3
        pad: str = config.added("both")

    @dataclass(frozen=True, kw_only=True)
    class Holder(Config, kind="__main__holder"):
        parts: tuple[Config, ...]

    try:
        assert After().hash == Before().hash == config_from_dict({"kind": "__main__grown", "size": 3}).hash
        assert Holder(parts=(After(),)).hash == Holder(parts=(Before(),)).hash
        assert len({After(pad="end").hash, After().hash, After(size=4).hash}) == 3
        assert Holder(parts=(After(pad="end"),)).hash != Holder(parts=(After(),)).hash
        assert After().to_dict()["pad"] == "both"
    finally:
        for word in ("__main__grown", "__main__holder"):
            config._kinds.pop(word)


def test_settings_from_before_the_folders_keep_their_hash():
    "A bundle names the recipe that it was packed from, and a store the front end that it was built with."
    from pathlib import Path

    from audiotag.train.run_folder import Run

    old = Path(__file__).resolve().parent.parent / "old_files" / "flat-layout"
    assert Run(old / "run").recipe.hash == json.loads((old / "freesound2019" / "bundle.json").read_text())["recipe"]


def bomb():
    "Lists of references to the list before, ten times as large in each."
    return "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))


HOSTILE = {
    "a pipe": (os.mkfifo, "not a file"),
    "a device": (lambda p: p.symlink_to("/dev/zero"), "not a file"),
    "4 GB": (lambda p: os.truncate(os.open(p, os.O_CREAT | os.O_WRONLY), 2**32), "too large"),
    "a billion values": (lambda p: p.write_text(bomb()), "references"),
    "a billion merged values": (
        lambda p: p.write_text(
            "a0: &a0 {x: 1}\n"
            + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 20)}]}}\n" for i in range(1, 10))
        ),
        "references",
    ),
    "a list in itself": (lambda p: p.write_text("kind: Recipe\nstages: &a [*a]\n"), "references"),
    "a number of many digits": (lambda p: p.write_text("kind: Recipe\nseed: " + "9" * 10000), "not valid YAML"),
    "deep lists": (lambda p: p.write_text("[" * 10000), "not valid YAML"),
    "no text": (lambda p: p.write_bytes(b"\xff\xfe"), "UTF-8"),
    "nothing": (lambda p: p.write_text(""), "no 'kind'"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_settings_from_a_stranger(tmp_path, what):
    make, said = HOSTILE[what]
    make(tmp_path / "r.yaml")
    with pytest.raises(AudiotagError, match=said):
        read_config(tmp_path / "r.yaml")


def test_settings_may_refer_to_one_another(tmp_path):
    (tmp_path / "r.yaml").write_text("kind: Hearing\npiece_s: &p 60.0\nahead_s: *p\n")
    assert read_config(tmp_path / "r.yaml") == LoaderOptions(piece_s=60.0, ahead_s=60.0)
