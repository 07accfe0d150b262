from __future__ import annotations

from dataclasses import replace

from persres.pipeline.catalog.layout import RunPaths
from persres.pipeline.run.drawn_classes import drawn_class_warnings
from persres.pipeline.run.report import build_report
from persres.pipeline.spec.run_spec import RunSpec

from ...support.catalog_factories import commit, memory_store, planned, shard_of

RUN = "20260101T000000Z-aaaaaa"


def test_report_warns_of_classes_that_the_drawn_world_does_not_draw():
    store = memory_store()
    commit(store, shard_of(planned("one")))
    assert drawn_class_warnings(store, ["dog"]) == []

    store.write(RunPaths(RUN).spec, RunSpec().to_yaml().encode())
    (warning,) = drawn_class_warnings(store, ["dog", "mug"])
    assert "'dog' is none of these" in warning and "set base_model" in warning
    assert drawn_class_warnings(store, ["mug"]) == []
    assert "<h2>Warnings</h2>" not in build_report(store)
    dog = planned("rex")
    dog = replace(dog, row=replace(dog.row, macro_class="dog"))
    commit(store, shard_of(dog))
    assert "&#39;dog&#39; is none of these" in build_report(store)

    store.write(RunPaths(RUN).spec, RunSpec(base_model="team/photos").to_yaml().encode())
    assert drawn_class_warnings(store, ["dog"]) == []
    store.write(RunPaths(RUN).spec, b"setting_of_a_later_version: 1\n")
    assert drawn_class_warnings(store, ["dog"]) == []
