"""What a name may stand for while it changes."""

from __future__ import annotations

import time

from tests.soak.administrator import Timeline


def test_request_that_overlaps_a_change_may_meet_both_contents() -> None:
    timeline = Timeline()
    timeline.begin("name", "old")
    timeline.settle("name")
    before = time.monotonic()
    assert timeline.possible("name", before, before) == {"old"}
    timeline.begin("name", "new")
    during = time.monotonic()
    assert timeline.possible("name", during, during) == {"old", "new"}
    timeline.settle("name")
    after = time.monotonic() + 1
    assert timeline.possible("name", after, after) == {"new"}
    assert timeline.possible("name", before, after) == {"old", "new"}


def test_name_without_changes_is_its_own_content() -> None:
    assert Timeline().possible("words", 0.0, 1.0) == {"words"}
