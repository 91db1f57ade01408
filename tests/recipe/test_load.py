"""From a name or path to a recipe: layers, and every error at once where it stands."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from agentvision.errors import RecipeError
from agentvision.recipe import load_recipe, recipe_info

from .conftest import BASE, Write, fails, load


def test_values_are_read_as_yaml_1_2(write: Write) -> None:
    recipe = load(write("trainer: {lr: 1e-6, mixed_precision: no}\ndescription: on\n"))
    assert recipe.trainer.lr == 1e-6
    assert recipe.trainer.mixed_precision == "no"
    assert recipe.description == "on"


def test_a_date_is_a_text(write: Write) -> None:
    assert load(write("description: 2024-01-01\n")).description == "2024-01-01"


def test_all_errors_come_at_once_each_with_line_column_key_and_caret(write: Write) -> None:
    text = """\
        algorithm:
          clp: 0.2
          group_size: one
        model:
          dtype: floot32
        """
    assert fails(write(textwrap.dedent(text))) == textwrap.dedent(
        """\
        3 problems in the recipe:
        mine.yaml:3:3: algorithm.clp: unknown key 'clp'; did you mean 'clip'?
             3 |   clp: 0.2
               |   ^
        mine.yaml:4:15: algorithm.group_size: must be a whole number, not 'one'
             4 |   group_size: one
               |               ^
        mine.yaml:6:10: model.dtype: must be 'auto', 'bfloat16' or 'float32', not 'floot32'; did you mean 'float32'?
             6 |   dtype: floot32
               |          ^"""
    )


def test_errors_in_a_parent_point_into_the_parent(write: Write, tmp_path: Path) -> None:
    path = write("seed: -1\n")
    (tmp_path / "base.yaml").write_text(BASE.replace("16", "0"))
    message = fails(path)
    assert "base.yaml:9:29: trainer.prompts_per_step: must be greater than or equal to 1, not 0" in message
    assert "mine.yaml:2:7: seed: must be greater than or equal to 0, not -1" in message


def test_a_missing_key_is_told_where_it_should_stand(write: Write) -> None:
    message = fails(write("name: x\nmodel: {path: a}\ndata: {path: b}\nrewards: [accuracy]\n", base=False))
    assert message.startswith("mine.yaml:3:1: data.source: is required")


def test_an_error_inside_a_plugin_names_the_plugin(write: Write) -> None:
    message = fails(write("rewards:\n  - accuracy\n  - format: {weight: heavy}\n"))
    assert message.startswith(
        "mine.yaml:4:22: rewards.1.format.weight: must be a number, or a map such as {initial: 0, "
    )


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ("{a: {}, b: {}}", "must be a name, or a map of one name"),
        ("{a: 3}", "the parameters of 'a' must be a map, not 3"),
        ("3", "must be a name, or a map of one name"),
        ("[]", "must be a name, or a map of one name"),
        ("{name: format, weight: 1}", "must be a name, or a map of one name"),
        ("''", "must be at least 1 character"),
    ],
)
def test_what_is_no_plugin_is_refused(write: Write, entry: str, what: str) -> None:
    message = fails(write(f"rewards: [{entry}]\n"))
    assert "mine.yaml:2:11" in message
    assert what in message.replace("String should have", "must be")


def test_texts_are_not_numbers_and_numbers_no_truth_values(write: Write) -> None:
    message = fails(
        write("seed: '60'\nalgorithm: {advantage_std: 1}\nname: 3\ntrainer: {lr: .nan}\nenv: {max_turns: true}\n")
    )
    assert "seed: must be a whole number, not '60'" in message
    assert "advantage_std: must be true or false, not 1" in message
    assert "name: must be a text (in quotes, if it looks like something else), not 3" in message
    assert "trainer.lr: '.nan' is not a finite float" in message
    assert "env.max_turns: must be a whole number, not True" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1,\nb: 2\n", "mine.yaml:3:1: this is not YAML: while parsing a flow sequence"),
        ("a: 1\n\tb: 2\n", "indent with spaces, not tabs\n     2 |  b: 2"),
        ("a: 'x\n", "this is not YAML: while scanning a quoted scalar"),
        ("a: \x01\n", "mine.yaml:1:4: this is not YAML: a control character stands here"),
        ("--- {}\n--- {}\n", "mine.yaml:2:1: this is not YAML: expected a single document"),
        ("[" * 500, "mine.yaml:1:1: this is nested too deeply"),
        ("- a\n", "mine.yaml:1:1: must be a map of keys to values, not ['a']"),
        ("seed: 1\nseed: 2\n", "mine.yaml:2:1: seed: this key stands twice, first in line 1"),
        ("env: {a: 1, a: 2}\n", "mine.yaml:1:13: env.a: this key stands twice"),
        ("seed: &s 1\ndescription: *s\n", "mine.yaml:2:1: description: an alias is not read"),
        ("env: &e [*e]\n", "env.0: an alias is not read"),
        ("<<: {seed: 1}\n", "mine.yaml:1:1: <<: a merge key is not read"),
        ("seed: !!python/object:os.system 1\n", "mine.yaml:1:7: seed: the tag '!!python/object:os.system' is not read"),
        ("seed: !mine 1\n", "the tag '!mine' is not read"),
        ("? [a]\n: 1\n", "a key must be a plain word"),
        ('name: "\\ud800"\n', "mine.yaml:1:7: name: half of a surrogate pair"),
        ("extends: 3\n", "extends: must be the name or the path of a recipe, not 3"),
        ("extends: visionthinc\n", "extends: there is no recipe 'visionthinc'; did you mean 'visionthink'?"),
        ("extends: ./gone.yaml\n", "there is no recipe file"),
        ("extends: nope\n", "mine.yaml:1:10: extends: there is no recipe 'nope'; known: "),
        ("profiles: [tiny]\n", "mine.yaml:1:11: profiles: must be a map"),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(write: Write, text: str, message: str) -> None:
    assert message in fails(write(text, base=False))


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "huge.yaml").write_bytes(b"#" * 1_000_001)
    assert "is not UTF-8 text" in fails(tmp_path / "binary.yaml")
    assert "is not a file" in fails(tmp_path / "folder.yaml")
    assert "larger than" in fails(tmp_path / "huge.yaml")
    assert "nul" in fails(tmp_path / "nul\0.yaml")
    assert "the one that ships with the package is called 'visionthink'" in fails(tmp_path / "visionthink.yaml")


def test_an_empty_file_lacks_what_is_required(write: Write) -> None:
    message = fails(write("", base=False))
    assert "3 problems" in message
    assert "mine.yaml:1:1: name: is required" in message


def test_an_unknown_name_lists_or_suggests() -> None:
    with pytest.raises(RecipeError, match="did you mean 'visionthink'"):
        load_recipe("visionthnk")
    with pytest.raises(RecipeError, match="known: down-sample, penalty-all"):
        load_recipe("xyzzy")


def test_extends_goes_by_path_from_the_file_and_by_name(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    assert load(write("seed: 5\n")).model.path == "some/model"
    mine = write("extends: visionthink\nname: mine\n", base=False)
    assert load(mine).algorithm == load_recipe("visionthink").algorithm


def test_maps_merge_and_lists_are_replaced(write: Write) -> None:
    recipe = load(write("model: {attn: eager}\nrewards: [format]\n"))
    assert (recipe.model.path, recipe.model.attn) == ("some/model", "eager")
    assert [part.name for part in recipe.rewards] == ["format"]


def test_a_cycle_of_extends_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: ./b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: ./a.yaml\n")
    (tmp_path / "c.yaml").write_text("extends: ./c.yaml\n")
    assert "b.yaml:1:10: extends: './a.yaml' extends this recipe in turn; break the cycle" in fails(tmp_path / "a.yaml")
    assert "extends: './c.yaml' extends this recipe in turn" in fails(tmp_path / "c.yaml")


def test_a_childs_profile_lies_over_its_parents_and_both_over_their_bodies(write: Write) -> None:
    path = write("trainer: {steps: 50, lr: 2e-5}\nprofiles: {tiny: {trainer: {keep: 9}}, big: {seed: 8}}\n")
    tiny = load(path, profile="tiny")
    assert (tiny.trainer.steps, tiny.trainer.keep, tiny.trainer.lr) == (3, 9, 2e-5)
    assert tiny.model.path == "small/model"
    assert load(path).trainer.steps == 50
    assert load(path, profile="big").seed == 8
    assert recipe_info(path).profiles == ("big", "tiny")


def test_a_profile_is_validated_when_chosen_and_errors_point_into_it(write: Write) -> None:
    path = write("profiles:\n  bad: {sed: 1}\n  worse: 3\n")
    assert load(path).seed == 0
    assert "mine.yaml:3:9: sed: unknown key 'sed'; did you mean 'seed'?" in fails(path, profile="bad")
    assert "mine.yaml:4:10: profiles.worse: must be a map" in fails(path, profile="worse")


def test_an_unknown_profile_suggests_the_nearest(write: Write) -> None:
    assert "there is no profile 'tini'; did you mean 'tiny'?" in fails(write(), profile="tini")
    plain = write("name: x\nmodel: {path: a}\ndata: {source: b}\nrewards: [accuracy]\n", base=False)
    assert "there is no profile 'tiny'; this recipe has none" in fails(plain, profile="tiny")


def test_problems_of_every_kind_are_told_together(write: Write) -> None:
    message = fails(write("seed: x\nname: a\nname: b\n"), profile="tini", overrides=["algorithm.clp=1", "junk"])
    assert message.startswith("5 problems")


def test_origins_name_file_profile_and_override(write: Write) -> None:
    origins = load(write("seed: 1\n"), "algorithm.clip=0.1", profile="tiny").origins
    assert origins[("seed",)] == "mine.yaml:2"
    assert origins[("data", "source")] == "base.yaml:3"
    assert origins[("trainer", "steps")] == "profile tiny, base.yaml:13"
    assert origins[("algorithm", "clip")] == "override"
    assert ("algorithm", "entropy") not in origins


def test_a_recipe_whose_parent_is_missing_says_nothing_else(write: Write) -> None:
    path = write("seed: 1\nextends: nope\n", base=False)
    message = fails(path, profile="tiny", overrides=["rewards.format.weight=1"])
    assert [line for line in message.splitlines() if "extends" not in line and "|" not in line] == []
