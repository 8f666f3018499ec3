"""`stoker route`: its two reports, and how it explains mistakes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stoker.cli.route import app
from stoker.errors import ConfigError

TRAIN = {
    "food": ["how do i cook rice", "recipe for soup", "рецепт борща", "bake a cake", "what spices go into curry"],
    "travel": ["book a flight", "hotel in rome", "купи билет на самолёт", "train to paris", "do i need a visa"],
    "oos": ["who won the match", "capital of france", "кто написал войну и мир", "how old is the sun", "what is art"],
}
TEST = [
    ("cook some noodles", "food", "en"),
    ("как сварить суп", "food", "ru"),
    ("a flight to berlin", "travel", "en"),
    ("забронируй гостиницу", "travel", "ru"),
    ("how tall is the eiffel tower", "oos", "en"),
    ("кто открыл пенициллин", "oos", "ru"),
]


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    rows = [{"text": text, "domain": domain} for domain, texts in TRAIN.items() for text in texts]
    train.write_text("\n".join(map(json.dumps, rows)))
    test.write_text("\n".join(json.dumps({"text": text, "domain": name, "lang": lang}) for text, name, lang in TEST))
    return str(test), str(train)


def run(*arguments: str, given: str | None = None) -> str:
    result = CliRunner().invoke(app, list(arguments), input=given, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_eval_for_programs(files):
    report = json.loads(run("eval", files[0], "--train", files[1], "--json"))
    assert report["rows"] == 6
    assert report["accuracy"] == 1
    assert report["auroc"] > 0.8
    assert set(report["by_language"]) == {"en", "ru"}
    assert report["by_language"]["ru"]["accuracy"] == 1
    assert sum(report["confusion"]["food"].values()) == 2


def test_eval_for_people(files):
    shown = run("eval", files[0], "--train", files[1], "--threshold", "0")
    assert "Confusion at threshold 0.00" in shown
    assert "AUROC" in shown
    assert "100.0 %" in shown


def test_a_threshold_of_one_gives_everything_to_nobody(files):
    report = json.loads(run("eval", files[0], "--train", files[1], "--threshold", "1", "--json"))
    assert report["confusion"] == {name: {"oos": 2} for name in ("food", "travel", "oos")}


def test_explain_names_expert_reason_and_nearest_example(files):
    report = json.loads(run("explain", "how do I cook pasta", "--train", files[1], "--json"))
    assert report["expert"] == "food"
    assert report["reason"].startswith("classifier 0.")
    assert report["nearest"][0]["text"] == "how do i cook rice"
    assert sum(report["scores"].values()) == pytest.approx(1)


def test_explain_reads_standard_input(files):
    shown = run("explain", "-", "--train", files[1], given="билет на поезд")
    assert "travel" in shown
    assert "nearest example" in shown


def test_the_configured_experts_are_used(tmp_path, files):
    config = tmp_path / "stoker.yaml"
    config.write_text(
        "models: [{name: base, upstream: 'http://127.0.0.1:9'}]\n"
        "routing:\n  experts:\n"
        f"    - {{name: food, model: base, examples_file: '{files[1]}', keywords: [borscht]}}\n"
        f"    - {{name: travel, model: base, examples_file: '{files[1]}'}}\n"
        f"  out_of_scope_file: '{files[1]}'\n"
    )
    assert json.loads(run("eval", files[0], "--config", str(config), "--json"))["accuracy"] == 1
    report = json.loads(run("explain", "a flight for borscht", "--config", str(config), "--json"))
    assert (report["expert"], report["reason"]) == ("food", "keyword 'borscht'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("eval", "missing.jsonl", "--train", "{train}"), "FILE: missing.jsonl cannot be read"),
        (("eval", "{odd}", "--train", "{train}"), "has rows of music, which no expert is called"),
        (("eval", "{test}", "--train", "{odd}"), "has rows of food, travel, which no expert"),
        (("eval", "{plain}", "--train", "{train}"), "has no row with a `domain`"),
        (("explain", "x", "--train", "{plain}"), "has a row without `domain`"),
        (("explain", "x", "--train", "{spaced}"), "is no expert's name"),
        (("explain", "x", "--config", "{empty}"), "none are configured"),
    ],
)
def test_mistakes_are_explained(tmp_path, files, arguments, message):
    odd, plain, spaced, empty = (tmp_path / name for name in ("odd.jsonl", "plain.txt", "spaced.jsonl", "empty.yaml"))
    odd.write_text('{"text": "play a song", "domain": "music"}')
    plain.write_text("a line\n")
    spaced.write_text('{"text": "play a song", "domain": "my music"}')
    empty.write_text("")
    names = {"test": files[0], "train": files[1], "odd": odd, "plain": plain, "spaced": spaced, "empty": empty}
    with pytest.raises(ConfigError) as caught:
        run(*(argument.format(**names) for argument in arguments))
    assert message in caught.value.message
