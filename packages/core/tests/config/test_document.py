from __future__ import annotations

import pytest
from rl_core.config.document import MAX_VALUES, plain, read_document
from rl_core.config.findings import Findings
from rl_core.config.yaml_rules import dump_yaml


@pytest.fixture
def read(folder):
    """``read(text or bytes)`` → the node, and the problems as printed."""

    def read(content: str | bytes):
        raw = content if isinstance(content, bytes) else content.encode()
        (folder / "c.yaml").write_bytes(raw)
        findings = Findings()
        node = read_document("c.yaml", findings)
        return node, [str(problem) for problem in findings.in_order(["c.yaml"])]

    return read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("3e-4", 3e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("5.", 5.0),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("yes", "yes"),
        ("off", "off"),
        ("12:30:00", "12:30:00"),
        ("2024-01-31", "2024-01-31"),
        ("True", True),
        ("~", None),
        ("", None),
        ("'1e-3'", "1e-3"),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
        ("1_000", "1_000"),
    ],
)
def test_scalars_follow_yaml_1_2(read, text, value):
    node, problems = read(f"key: {text}\n")
    found = plain(node)["key"]
    assert (found, problems) == (value, [])
    assert isinstance(found, type(value))


def test_every_key_and_item_knows_its_line(read):
    node, _ = read("# a comment\na:\n  b: 1\n  c:\n    - x\n    - {d: 2}\n")
    lines = {".".join(map(str, n.path)): n.where.line for n in node.walk()}
    assert lines == {"": 2, "a": 2, "a.b": 3, "a.c": 4, "a.c.0": 5, "a.c.1": 6, "a.c.1.d": 6}


def test_a_key_given_twice_names_both_lines(read):
    _, problems = read("a: 1\nb: 2\na: 3\nb: 4\n")
    assert problems == [
        "c.yaml:3: a: the key is given twice, first at c.yaml:1\n    remove one of them",
        "c.yaml:4: b: the key is given twice, first at c.yaml:2\n    remove one of them",
    ]


def test_anchors_and_merges_work_and_own_keys_win(read):
    node, problems = read("a: &x {k: 1, l: 2}\nb: {<<: *x, l: 3}\nc: {<<: [{m: 1}, {m: 2, n: 3}]}\nd: *x\n")
    assert problems == []
    assert plain(node) == {"a": {"k": 1, "l": 2}, "b": {"k": 1, "l": 3}, "c": {"m": 1, "n": 3}, "d": {"k": 1, "l": 2}}


def test_an_alias_inside_its_own_value_is_reported(read):
    assert read("a: &x [1, *x]\n")[1] == ["c.yaml:1: a.1: an alias refers to the value that contains it"]


def test_aliases_that_multiply_are_cut_off(read):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    _, problems = read("\n".join(lines))
    assert len(problems) == 1
    assert problems[0].endswith(f"the document holds more than {MAX_VALUES} values")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "a: 1\nb: [1, 2\nc: 3\n",
            "c.yaml:3: not valid YAML: while parsing a flow sequence expected ',' or ']', but got ':'\n"
            "    text with ': ', '#' or a leading '*&!%@`{[' needs quotes; indent with spaces",
        ),
        (
            "a: 1\n\tb: 2\n",
            "c.yaml:2: not valid YAML: while scanning for the next token "
            "found character '\\t' that cannot start any token\n"
            "    text with ': ', '#' or a leading '*&!%@`{[' needs quotes; indent with spaces",
        ),
        ("a: 1\nb: \x07\n", "c.yaml:2: not valid YAML: the character U+0007 is not allowed"),
        ("", "c.yaml: the file is empty\n    write sections such as 'model:' and 'algorithm:'"),
        ("# nothing\n", "c.yaml: the file is empty\n    write sections such as 'model:' and 'algorithm:'"),
        (
            "- a\n- b\n",
            "c.yaml:1: the top of the file must be a mapping of sections, found a list\n"
            "    write sections such as 'model:' and 'algorithm:'",
        ),
        (
            "hello\n",
            "c.yaml:1: the top of the file must be a mapping of sections, found str 'hello'\n"
            "    write sections such as 'model:' and 'algorithm:'",
        ),
        (
            "a: !!python/object/apply:os.system ['true']\n",
            "c.yaml:1: a: the tag '!!python/object/apply:os.system' is not allowed\n"
            "    use plain text, numbers, lists and maps",
        ),
        ("a: !x 1\n", "c.yaml:1: a: the tag '!x' is not allowed\n    use plain text, numbers, lists and maps"),
        ("a: !!int x\n", "c.yaml:1: a: cannot read 'x' as int"),
        ("? [1, 2]\n: 3\n", "c.yaml:1: a key must be text, not a list or a mapping"),
        ("a: {<<: 3}\n", "c.yaml:1: a.<<: '<<' takes an alias of a mapping, or a list of them"),
        (b"a: 1\nb: \xff\n", "c.yaml:2: the file is not UTF-8 text (byte 0xff)\n    save it as UTF-8"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_problem_with_its_line(read, text, problem):
    assert read(text)[1] == [problem]


def test_deep_nesting_is_a_problem_and_not_a_recursion_error(read):
    assert read("a: " + "[" * 100 + "]" * 100)[1] == ["c.yaml:1: a.0.0: nested more than 60 levels deep"]
    assert read("[" * 20_000)[1] == ["c.yaml:1: nested more than 60 levels deep"]


def test_a_byte_order_mark_is_ignored(read):
    node, problems = read(b"\xef\xbb\xbfa: 1\n")
    assert (plain(node), problems) == ({"a": 1}, [])


def test_a_missing_file_suggests_the_one_next_to_it(folder):
    (folder / "conf").mkdir()
    (folder / "conf" / "train.yaml").write_text("a: 1")
    findings = Findings()
    assert read_document("conf/trian.yaml", findings) is None
    assert [str(p) for p in findings.in_order([])] == [
        "conf/trian.yaml: cannot read 'conf/trian.yaml': there is no such file\n    did you mean 'conf/train.yaml'?"
    ]


def test_a_directory_is_a_problem(folder):
    findings = Findings()
    assert read_document(str(folder), findings, shown="here") is None
    assert [str(p) for p in findings.in_order([])] == [
        "here: cannot read 'here': it is a directory\n    name a YAML file in it"
    ]


@pytest.mark.parametrize(
    "value",
    [
        "1e-3",
        "yes",
        "null",
        "12:30",
        "0o17",
        "",
        "a: b",
        "# x",
        "<<",
        "${x}",
        "line\nbreak",
        "é",
        1e-6,
        1e22,
        True,
        None,
    ],
)
def test_what_is_written_reads_back_as_the_same_value(read, value):
    node, problems = read(dump_yaml({"key": value, "list": [value]}))
    assert (plain(node), problems) == ({"key": value, "list": [value]}, [])
