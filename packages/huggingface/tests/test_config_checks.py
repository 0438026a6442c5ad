"""``rl check`` looks into model folders."""

from __future__ import annotations


def test_a_models_folder_is_looked_at_wherever_a_section_names_one(problems_of, base, folder):
    for name in ("broken", "demo/export"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{")
    path = folder / "broken"
    data = base.replace("path: train.txt", "path: train.txt, model: ./broken")
    run = base.replace("path: org/base", "path: ./broken")
    reason = (
        f"{path}/config.json is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    )
    assert problems_of(data) == [f"c.yaml:4: data.model: {reason}\n    copy or download it again"]
    assert problems_of(run) == [f"c.yaml:1: model.path: {reason}\n    copy or download it again"]
    exported = base.replace("path: train.txt", f"path: train.txt, model: {folder}/demo/export")
    assert problems_of(exported, f"run.directory={folder}/demo") == [], "an earlier stage writes it"
