"""What narrow links carry: ranks at 32 bits a number beside bytes as coded."""

from __future__ import annotations

import pytest

from rankcast.cli.demo import narrow_table
from rankcast.packaging.coded_links import coded_links
from rankcast.packaging.pack import read_adapter
from rankcast.presets import load_preset
from rankcast.training.run import TrainResult, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    output = str(tmp_path_factory.mktemp("coded") / "run")
    return train(load_preset("tiny", {"steps": 6, "horizon": 3, "output": output}))


def test_each_link_gets_a_file_that_fits(run: TrainResult) -> None:
    source = read_adapter(run.folder.path)
    session = run.session
    links = coded_links(session.planner, session.learner, source, (-30.0, 0.0, 15.0), 5e3)
    assert [link.snr_db for link in links] == [0.0, 15.0]  # 1 byte carries no file
    for link in links:
        assert 0 < link.n_bytes <= link.budget_bytes
        assert link.ranks.n_examples == link.planned.n_examples == link.one_step.n_examples
    few, many = links
    assert few.n_bytes < many.n_bytes


def test_the_table_of_the_demo(run: TrainResult) -> None:
    table = narrow_table(run.session, run.folder.path, (0.0, 10.0))
    assert table.row_count == 2
    assert "100 kHz" in str(table.title)
