"""A published table is not replaced by one of fewer cases, whatever machine counted them."""

import json

from benchmarks import recording
from tests.faults.results import find_fuller


def test_a_table_of_fewer_cases_replaces_none_of_another_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "RESULTS_DIR", tmp_path)
    measures = {"kills": {"cases": 52}, "full_disk": {"cases": 3}, "no_more": {"cases": 9}}
    (tmp_path / "reliability_another.json").write_text(json.dumps({"machine": "another", "measures": measures}))
    sums = {
        "kills": {"cases": 51, "target": 50},
        "full_disk": {"cases": 2, "target": 24},
        "new": {"cases": 0, "target": 8},
    }
    assert find_fuller(sums) == ["full_disk"], "beyond the target none is missed"
