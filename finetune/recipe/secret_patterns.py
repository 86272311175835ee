"""What looks like a secret: tokens and keys by the forms their makers gave them, and passwords in an address.

In goes text; out comes the text with them masked, or the faults of a recipe that holds one. A recipe is copied into
the run's folder, into its log and beside its result, so it is no place for a secret. Messages never repeat what was
found. Nothing is read from the environment here: `run.secrets` adds the values that stand there.
"""

import re
from collections.abc import Iterator, Sequence

from finetune.recipe.faults import Fault, to_line_number
from finetune.recipe.yaml_lines import Node

__all__ = ["MASK", "find_secret_faults", "find_typed_secrets", "mask_patterns"]

MASK = "***"

# Long enough that no name of a model or folder (hf_mistral_7b, sk-learn) is one.
_KINDS = {
    "a token of the Hub": r"\bhf_(?:oauth_)?[A-Za-z0-9]{16,}",
    "a key of an API (sk-…)": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a token of GitHub or GitLab": r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,})",
    "a key of AWS": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a key of Google": r"\bAIza[\w-]{30,}",
    "a token of Slack": r"\bxox[abeoprs]-[\w-]{10,}",
    "a key of Weights & Biases": r"\bwandb_v\d_\w{16,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"(?<=://)[^/\s:@'\"]*:[^/\s@'\"]+(?=@)",
    "a signed address": r"(?<=[?&])(?:(?:access_|auth_)?token|api_?key|password|secret|sig|x-(?:amz|goog)-signature)"
    r"=[^&\s'\"]{8,}",
}
_SECRET = re.compile("|".join(f"({pattern})" for pattern in _KINDS.values()), re.IGNORECASE)
_ADVICE = (
    "A recipe is copied into the run's folder. Take it out of here, and make a new one if others saw this one.",
    "Secrets come from the environment (HF_TOKEN, WANDB_API_KEY) or from `hf auth login`; rows from a file or folder.",
)


def mask_patterns(text: str) -> str:
    """Copy a text with everything that has the form of a secret replaced by `***`."""
    return _SECRET.sub(MASK, text)


def find_typed_secrets(text: str, source: str, overrides: Sequence[str]) -> list[Fault]:
    """Find secrets in a recipe's file, comments included, and on the command line; none is repeated."""
    lines = enumerate(text.splitlines(), start=1)
    found = [_fault(f"{source}:{number}", kind) for number, line in lines if (kind := _find_kind(line))]
    return found + [_fault("command line", kind) for override in overrides if (kind := _find_kind(override))]


def find_secret_faults(tree: Node) -> list[Fault]:
    """Find secrets in a recipe's values, where an escape may have kept them from being seen in the file."""
    return [_fault(place, kind) for place, text in _walk(tree) if (kind := _find_kind(text))]


def _walk(node: Node) -> Iterator[tuple[str, str]]:
    if isinstance(node.value, dict):
        for key, child in node.value.items():
            yield child.key_place, key
            yield from _walk(child)
    elif isinstance(node.value, list):
        for child in node.value:
            yield from _walk(child)
    elif isinstance(node.value, str):
        yield node.place, node.value


def _find_kind(text: str) -> str | None:
    found = _SECRET.search(text)
    return None if found is None or found.lastindex is None else list(_KINDS)[found.lastindex - 1]


def _fault(place: str, kind: str) -> Fault:
    return Fault(place, f"here stands what looks like {kind}.", _ADVICE, to_line_number(place))
