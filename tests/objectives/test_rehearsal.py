"""Claims on the rehearsal that need no run; those on whole runs stand in tests/end_to_end/test_memory.py."""

from types import SimpleNamespace
from typing import Any

from finetune.objectives import rehearsal


def test_of_several_processes_only_the_first_touches_the_checkpoint_that_is_rehearsed(tmp_path):
    being_written = tmp_path / ".rehearsal.part" / "adapter_model.safetensors"
    being_written.parent.mkdir()
    being_written.write_bytes(b"by the first process")
    second: Any = SimpleNamespace(args=SimpleNamespace(should_save=False))
    rehearsal._save(second, being_written.parent, with_optimizer=True)
    assert being_written.read_bytes() == b"by the first process"
