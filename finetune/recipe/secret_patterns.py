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

# As long as real ones nearly are, in their makers' upper and lower case and with the digits that drawn letters have, so
# that no name of a model, folder or run (hf_mistral_7b, opus-en-sk-parallel-sentences) is one.
_KINDS = {
    "a token of the Hub": r"\bhf_(?:oauth_)?(?=[a-z0-9]*[A-Z])(?=[A-Z0-9]*[a-z])[A-Za-z0-9]{30,}",
    "a key of an API (sk-…)": r"\bsk-(?:(?:proj|ant|or-v\d|svcacct|admin)-(?=[\w-]*[A-Z\d])[\w-]{20,}|[a-f0-9]{32,}"
    r"|(?=[A-Za-z]*\d)(?=[a-z0-9]*[A-Z])[A-Za-z0-9]{32,})",
    "a token of GitHub or GitLab": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{20,}"
    r"|glpat-(?=[\w-]*[A-Z\d])[\w-]{20,})",
    "a key of AWS": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a key of Google": r"\bAIza[\w-]{35,}",
    "a token of Slack": r"\bxox[abprs]-(?=[\w-]*\d)[\w-]{20,}",
    "a key of Weights & Biases": r"\bwandb_v\d_(?=\w*[A-Z\d])(?=\w*[A-Za-z\d]{20})\w{30,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"(?<=://)[^/\s:@'\"]*:[^/\s@'\"]+(?=@)",
    "a signed address": r"(?<=[?&])(?i:(?:access_|auth_)?token|api_?key|password|secret|sig|x-(?:amz|goog)-signature)"
    r"=[^&\s'\"]{8,}",
}
_SECRET = re.compile("|".join(f"({pattern})" for pattern in _KINDS.values()))
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
    return Fault(place, f"this looks like {kind}.", _ADVICE, to_line_number(place))
