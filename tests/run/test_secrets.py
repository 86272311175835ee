"""Secrets stay out of every file and stream of a run: made-up ones are planted and looked for."""

import logging
import sys
import threading
from pathlib import Path

import pytest

from finetune.cli import run_verb
from finetune.errors import PlaceError, RecipeError
from finetune.recipe.reading import build_recipe, read_recipe
from finetune.recipe.secret_patterns import find_typed_secrets
from finetune.run.logging import log_to_console
from finetune.run.secrets import mask_arguments, mask_text, refuse_known_secrets
from tests.run.folders import start_folder

HUB = "hf_" + "Canary" * 5
VALUES = {"WANDB_API_KEY": "c0ffee" * 6, "AWS_SECRET_ACCESS_KEY": "canary/secret+access/key", "HF_TOKEN": HUB}
TYPED = [
    HUB,
    "sk-proj-" + "Canary" * 4,
    "ghp_" + "Canary" * 6,
    "AKIA" + "CANARYCANARYCANA",
    "https://me:canary-pass@host/rows.jsonl",
    "https://host/rows.jsonl?X-Amz-Signature=canarycanary",
]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VALUES.items():
        monkeypatch.setenv(name, value)


def holds_canary(text: str) -> bool:
    return any(value in text for value in VALUES.values()) or "canary" in text.lower()


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("data.train.path=https://me:s3cret@host/x", "data.train.path=https://***@host/x"),
        ("model.model_name_or_path=hf_AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh", "model.model_name_or_path=***"),
        ("adapter.init_from=models/hf_mistral_7b_instruct", "adapter.init_from=models/hf_mistral_7b_instruct"),
        ("data.special_tokens_in_data=allow", "data.special_tokens_in_data=allow"),
        ("evaluation.max_new_tokens=8", "evaluation.max_new_tokens=8"),
        ("training.hub_token=abc", "training.hub_token=***"),
        ("training.learning_rate=1e-3", "training.learning_rate=1e-3"),
    ],
)  # fmt: skip
def test_what_looks_like_a_secret_is_masked_and_nothing_else(typed, kept):
    assert mask_arguments([typed]) == [kept]


def test_the_values_of_variables_named_as_secrets_are_masked_wherever_they_stand(planted, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "disabled")
    monkeypatch.setenv("SORT_KEY", "loss")
    for value in VALUES.values():
        assert mask_text(f"the Hub answers 500 to {value}!") == "the Hub answers 500 to ***!"
    assert mask_text("disabled; the loss") == "disabled; the loss"


def test_console_and_log_file_mask_messages_warnings_and_tracebacks(planted, tmp_path, capsys):
    with log_to_console() as log_file:
        log_file.open(tmp_path / "log.txt")
        logging.getLogger("finetune.train").info("going to %s", TYPED[4])
        try:
            raise OSError(f"refused: {VALUES['WANDB_API_KEY']}")
        except OSError:
            logging.getLogger("somelibrary").exception("cannot upload with %s", HUB)
    streams = capsys.readouterr()
    for text in (streams.err, streams.out, (tmp_path / "log.txt").read_text()):
        assert not holds_canary(text), text
    assert "going to https://***@host" in streams.err


def test_the_reason_in_status_json_is_masked(planted, tmp_path):
    folder = start_folder(tmp_path)
    with pytest.raises(PlaceError), folder:
        raise PlaceError(f"the Hub refuses {HUB}")
    assert folder.read_status()["reason"] == "the Hub refuses ***"


def test_an_error_nobody_caught_is_printed_masked(planted, monkeypatch, capsys):
    def main() -> None:
        raise ValueError(f"a fault of ours beside {HUB}")

    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    with pytest.raises(ValueError, match="a fault of ours") as bug:
        run_verb(main, [])
    sys.excepthook(bug.type, bug.value, bug.tb)
    text = capsys.readouterr().err
    assert "a fault of ours beside ***" in text
    assert "Traceback" in text
    assert not holds_canary(text)


def test_an_error_in_a_thread_or_a_finalizer_is_printed_masked(planted, monkeypatch, capsys):
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)

    class Finalized:
        def __del__(self) -> None:
            raise ValueError(f"a finalizer beside {HUB}")

    def fail() -> None:
        raise ValueError(f"a thread beside {HUB}")

    def main() -> None:
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        Finalized()

    with pytest.raises(SystemExit):
        run_verb(main, [])
    text = capsys.readouterr().err
    assert "a thread beside ***" in text
    assert "a finalizer beside ***" in text
    assert text.count("Traceback") == 2
    assert not holds_canary(text)


def test_whoever_had_hooks_of_his_own_gets_them_back(monkeypatch):
    mine = lambda args: None  # noqa: E731 - a hook
    monkeypatch.setattr(threading, "excepthook", mine)
    with pytest.raises(SystemExit):
        run_verb(lambda: None, [])
    assert threading.excepthook is mine


def test_a_secret_is_masked_as_an_address_holds_it_too(planted):
    for form in ("canary/secret%2Baccess/key", "canary%2Fsecret%2Baccess%2Fkey"):
        assert mask_text(f"https://host/{form}?x=1") == "https://host/***?x=1"


def test_passwords_by_their_short_names_are_secrets_and_the_folder_a_shell_is_in_is_none(monkeypatch):
    monkeypatch.setenv("DB_PASS", "canary-of-pass")
    monkeypatch.setenv("SMTP_PWD", "canary-of-pwd")
    monkeypatch.setenv("PWD", "/srv/finetune/here")
    assert mask_text("canary-of-pass, canary-of-pwd, /srv/finetune/here") == "***, ***, /srv/finetune/here"


@pytest.mark.parametrize("name", ["PGPASSWORD", "SSHPASS", "GHTOKEN", "CLIENTSECRET", "OPENAIAPIKEY", "AWSACCESSKEY"])
def test_a_name_that_ends_in_the_word_needs_no_line_before_it(monkeypatch, name):
    monkeypatch.setenv(name, "canary-of-16-and")
    assert mask_text("told canary-of-16-and") == "told ***"
    with pytest.raises(RecipeError, match=f"the value of the variable {name}"):
        refuse_known_secrets("path: canary-of-16-and.jsonl")


@pytest.mark.parametrize("name", ["MONKEY", "COMPASS", "PROXY_BYPASS", "SSH_ASKPASS", "OLDPWD", "MAX_TOKENS"])
def test_words_that_end_alike_name_no_secret(monkeypatch, name):
    monkeypatch.setenv(name, "canary-of-16-and")
    assert mask_text("told canary-of-16-and") == "told canary-of-16-and"
    refuse_known_secrets("path: canary-of-16-and.jsonl")


@pytest.mark.parametrize("name", ["PGPASSWORD", "DB_PASS", "SMTP_PWD", "KEY_PASSPHRASE", "DB_PASSWORD_2"])
def test_a_password_of_eight_characters_is_refused_in_a_recipe_by_its_variables_name(monkeypatch, name):
    monkeypatch.setenv(name, "c4nary-7")
    with pytest.raises(RecipeError, match=f"the value of the variable {name}") as refusal:
        refuse_known_secrets("name: mine\n# the database's: c4nary-7\n")
    assert "c4nary" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("PGPASSWORD", "postgres", "path: data/postgres/rows.jsonl"),  # a word
        ("PGPASSWORD", "12345678", "revision: a123456789"),  # a part of another
        ("PGPASSWORD", "c4nary7", "path: c4nary7"),  # shorter than any that is masked
        ("WANDB_API_KEY", "mistral-7b", "name: mistral-7b"),  # no password, and no key is so short
    ],
)
def test_a_word_that_a_short_secret_merely_equals_is_no_leak(monkeypatch, name, value, text):
    monkeypatch.setenv(name, value)
    refuse_known_secrets(text)


RECIPE = "name: leaky\nmodel: {{model_name_or_path: ./nowhere}}\ndata: {{train: {{path: {path}}}}}\n{more}\n"


@pytest.mark.parametrize("secret", TYPED)
def test_a_recipe_that_holds_a_secret_is_refused_by_its_line_without_repeating_it(tmp_path, secret):
    path = tmp_path / "leaky.yaml"
    plain = RECIPE.format(path="rows.jsonl", more="seed: 1")
    escaped = '"' + "".join(f"\\x{ord(letter):02x}" for letter in secret) + '"'
    written = [
        (3, RECIPE.format(path=f'"{secret}"', more="seed: 1"), []),
        (3, RECIPE.format(path=escaped, more="seed: 1"), []),
        (4, RECIPE.format(path="rows.jsonl", more=f"# later: {secret}"), []),
        (4, RECIPE.format(path="rows.jsonl", more=f"{{ {secret}"), []),
        (0, plain, [f"training.run_name={secret}"]),
        (0, plain, [secret]),
    ]
    for line, text, overrides in written:
        path.write_text(text)
        with pytest.raises(RecipeError) as refusal:
            read_recipe(path, overrides)
        message = str(refusal.value)
        place = f"{path}:{line}" if line else "command line"
        assert message.startswith(f"{place}: this looks like"), message
        assert "environment (HF_TOKEN" in message
        assert not holds_canary(message), message


def test_values_that_come_without_a_file_are_held_to_the_same(tmp_path):
    with pytest.raises(RecipeError, match="this looks like a token of the Hub") as refusal:
        build_recipe({"name": "leaky", "model": {"model_name_or_path": HUB}, "data": {"train": {"path": "rows"}}})
    assert not holds_canary(str(refusal.value))


def test_a_recipe_that_repeats_a_secret_of_the_environment_is_refused_by_the_variables_name(planted):
    refuse_known_secrets("name: mine")
    with pytest.raises(RecipeError, match="the value of the variable WANDB_API_KEY") as refusal:
        refuse_known_secrets("name: mine", f"run_name: {VALUES['WANDB_API_KEY']}")
    assert not holds_canary(str(refusal.value))


LETTERS = "aB3dE5gH7jK9mN1pQ2sT4vW6yZ8"  # 27, drawn as makers draw them: digits and both cases


@pytest.mark.parametrize(
    "token",
    [
        f"hf_{LETTERS}abcdefg", f"hf_oauth_{LETTERS}abcdefg", f"sk-{LETTERS}T3BlbkFJ{LETTERS}", f"sk-{'0a1f' * 8}",
        f"sk-proj-{LETTERS}_{LETTERS}-x", f"sk-ant-api03-{LETTERS}", f"sk-or-v1-{'0a1f' * 16}",
        f"sk-svcacct-{LETTERS}", f"gho_{LETTERS}abcdefghi", f"github_pat_{LETTERS}_{LETTERS}", f"glpat-{LETTERS[:20]}",
        f"AIza{LETTERS}-abcdefg", f"xoxb-123456789012-1234567890123-{LETTERS[:24]}", f"wandb_v1_{LETTERS}_{LETTERS}",
        "https://host/rows?Token=abcdefgh",
    ],
)  # fmt: skip
def test_a_token_of_any_maker_is_found(token):
    assert len(find_typed_secrets(f"path: {token}", "r.yaml", [token])) == 2
    assert "***" in mask_text(f"told of {token}")


@pytest.mark.parametrize(
    "value",
    [
        "data/sk-alpaca-instructions-cleaned.json", "user/opus-en-sk-parallel-sentences-2024",
        "slovak/sk-SQuAD-translated-v2-cleaned", "models/sk-learn-docs-instruct-7b",
        "opus-sk-or-parallel-sentences-from-2024", "hf_internaltestingmodels", "hf_transformersinternal/x",
        "hf_" + "internaltestingmodels" * 2, "wandb_v2_mistral_alpaca_long",
        "wandb_v2_Mistral_7B_Instruct_v02_alpaca_long",
        "asiapacificnewsdata1.json", "data/asiapacificnewsda1", "data/aizanamidatasetofkoreansentences2024.json",
        "~/xoxo-love-letters-cleaned", "xoxp-love-letters-cleaned-again", "gho_data_instructions_for_alpaca",
        "/home/me/task-instructions-and-answers-v2", "hf://datasets/a/b@refs/convert/parquet", "s3://bucket/prefix/a@b",
    ],
)  # fmt: skip
def test_names_of_models_folders_and_runs_are_no_secrets(value):
    assert find_typed_secrets(f"path: {value}", "r.yaml", [f"training.run_name={value}"]) == []
    assert mask_text(f"reading {value}") == f"reading {value}"


def test_the_recipes_that_come_with_this_hold_none():
    for path in sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")):
        assert find_typed_secrets(path.read_text(), str(path), []) == []
