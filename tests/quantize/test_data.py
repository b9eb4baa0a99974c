"""Files of examples: what each form gives, and what is wrong with those that cannot be read, with the line."""

from __future__ import annotations

import json

import pytest

from torchless.errors import InputError
from torchless.quantize.data import Example, read_examples, sample


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def lines(*objects):
    return "".join(json.dumps(one) + "\n" for one in objects)


def contents(examples):
    return [(one.text, one.label) for one in examples]


def test_json_lines_keep_texts_and_labels_as_they_are(write):
    path = write(
        "mails.jsonl",
        "\ufeff" + '{"text": "one\u2028line", "label": 1}\n\n' + lines({"text": "Ü", "label": 0}),
    )
    examples = read_examples(path, "text-classification")
    assert contents(examples) == [("one\u2028line", 1), ("Ü", 0)]
    assert [one.place for one in examples] == [f"{path}, line 1", f"{path}, line 3"]
    assert examples[0].given == "one\u2028line"


def test_a_table_is_the_same_as_json_lines(write):
    table = 'label,text\r\nspam,"two\r\nlines, ""quoted"""\r\n\r\nham,short\r\n'
    path = write("mails.csv", table)
    examples = read_examples(path, "text-classification")
    assert contents(examples) == [('two\nlines, "quoted"', "spam"), ("short", "ham")]
    assert [one.place for one in examples] == [f"{path}, line 2", f"{path}, line 5"]
    assert contents(read_examples(write("mails.tsv", "text\tlabel\na, b\tham\n"), "text-classification")) == [
        ("a, b", "ham")
    ]


def test_an_empty_cell_is_no_label(write):
    examples = read_examples(write("a.csv", "text,label\na,\nb,\n"), "text-classification")
    assert contents(examples) == [("a", None), ("b", None)]
    with pytest.raises(InputError, match=r"line 3: no label, other lines have one"):
        read_examples(write("a.csv", "text,label\na,ham\nb,\n"), "text-classification")


def test_a_cell_may_be_longer_than_pythons_csv_allows_by_itself(write):
    (example,) = read_examples(write("long.csv", "text\n" + "x" * 300_000 + "\n"), "feature-extraction")
    assert len(example.text) == 300_000


def test_columns_can_have_other_names(write):
    path = write("a.jsonl", lines({"body": "b", "next": "n", "class": "c", "text": "not this"}))
    columns = {"text_column": "body", "text_pair_column": "next", "label_column": "class"}
    (example,) = read_examples(path, "text-classification", **columns)
    assert (example.given, example.label) == (("b", "n"), "c")
    (example,) = read_examples(
        write("b.jsonl", lines({"w": ["a", "b"], "t": [0, 1]})),
        "token-classification",
        text_column="w",
        label_column="t",
    )
    assert (example.words, example.tags, example.text) == (("a", "b"), (0, 1), "a b")
    (example,) = read_examples(write("c.jsonl", lines({"body": "a b"})), "token-classification", text_column="body")
    assert (example.words, example.tags, example.text) == ((), None, "a b")


def test_a_plain_text_is_one_document_for_a_language_model_and_paragraphs_for_others(write):
    path = write("book.txt", "\n\nCall me\nIshmael.\n\n  \nSome years ago\n\n")
    assert contents(read_examples(path, "text-generation")) == [("Call me\nIshmael.\n\n  \nSome years ago", None)]
    examples = read_examples(path, "feature-extraction")
    assert contents(examples) == [("Call me\nIshmael.", None), ("Some years ago", None)]
    assert [one.place for one in examples] == [f"{path}, line 3", f"{path}, line 7"]


@pytest.mark.parametrize(
    ("given", "answers"),
    [
        ({"text": ["a", "b"], "answer_start": [1, 2]}, ("a", "b")), (["a"], ("a",)), ("a", ("a",)), ([], ()),
        ("", ()), ({"text": [], "answer_start": []}, ()), (None, None),
    ],
)  # fmt: skip
def test_answers_are_squads_object_or_texts(write, given, answers):
    line = {"question": "Who?", "context": "a b", "answers": given}
    expected = Example("", "Who?", "a b", answers=answers)
    (example,) = read_examples(write("squad.jsonl", lines(line)), "question-answering")
    assert (example.given, example.answers) == (expected.given, expected.answers)


def test_lists_stand_in_tables_as_json_or_as_words(write):
    path = write("tags.csv", 'tokens,ner_tags\nAhab sails,B-PER O\n"[""New York"", ""is""]","[1, 0]"\n')
    one, other = read_examples(path, "token-classification")
    assert (one.words, one.tags) == (("Ahab", "sails"), ("B-PER", "O"))
    assert (other.words, other.tags, other.text) == (("New York", "is"), (1, 0), "New York is")
    path = write("choice.csv", 'context,question,choices,label\nIt rains.,So?,"[""wet"", ""dry""]",0\n')
    (example,) = read_examples(path, "multiple-choice")
    assert (example.text, example.question, example.choices, example.label) == (
        "It rains.",
        "So?",
        ("wet", "dry"),
        "0",
    )


@pytest.mark.parametrize(
    ("name", "content", "task", "message"),
    [
        ("a.jsonl", "", "text-classification", r"a\.jsonl holds no text"),
        ("a.jsonl", "\n \n", "text-classification", r"a\.jsonl holds no text"),
        ("a.csv", "", "text-classification", r"a\.csv holds no text"),
        ("a.csv", "text,label\n", "text-classification", r"a\.csv holds no text"),
        ("a.txt", " \n\n", "text-generation", r"a\.txt holds no text"),
        ("a.txt", " \n\n", "feature-extraction", r"a\.txt holds no text"),
        ("a.parquet", "PAR1", "text-classification", r"a\.parquet: the name says.*known: \.jsonl"),
        ("a.jsonl", b'{"text": "\xff"}', "fill-mask", r"a\.jsonl, line 1: not UTF-8.*save it as UTF-8"),
        ("a.txt", b"fine\n\xe4", "text-generation", r"a\.txt, line 2: not UTF-8"),
        ("a.csv", b"PK\3\4\0\0", "fill-mask", r"a\.csv is a binary file"),
        ("a.jsonl", lines({"text": "a"}) + "{text}\n", "fill-mask", r"line 2: no JSON \(.*one object a line"),
        ("a.jsonl", "[" * 100_000, "fill-mask", r"line 1: no JSON"),
        ("a.json", '[{"text": "a"}]', "fill-mask", r"line 1: a JSON list: give one object a line"),
        ("a.jsonl", lines({"txt": "a", "label": 1}), "text-classification",
         r"line 1: text-classification needs 'text' \(there is: txt, label\).*text_column="),
        ("a.jsonl", lines({"question": "a"}), "question-answering", r"needs 'context' \(there is: question\)"),
        ("a.jsonl", lines({"text": "a"}), "next-sentence-prediction", r"needs 'text_pair'"),
        ("a.jsonl", lines({"text": None}), "fill-mask", r"needs 'text'"),
        ("a.jsonl", lines({"text": 7}), "fill-mask", r"line 1: text: expected text, got int"),
        ("a.jsonl", lines({"text": "a", "text_pair": ["b"]}), "text-classification", r"text_pair: expected text"),
        ("a.jsonl", lines({"text": "\ud800"}), "fill-mask", r"line 1: text holds a lone surrogate"),
        ("a.jsonl", lines({"text": " "}), "fill-mask", r"line 1: 'text' is empty"),
        ("a.jsonl", lines({"text": "a", "label": 1}, {"text": "b"}), "text-classification",
         r"line 2: no label, other lines have one"),
        ("a.jsonl", lines({"words": ["a", "b"], "tags": ["O"]}), "token-classification", r"2 words and 1 tags"),
        ("a.jsonl", lines({"words": ["a", " "]}), "token-classification", r"'words' holds an empty text"),
        ("a.jsonl", lines({"words": []}), "token-classification", r"'words' is empty"),
        ("a.jsonl", lines({"words": 3}), "token-classification", r"'words' is 3: give a list"),
        ("a.jsonl", lines({"words": "[a"}), "token-classification", r"'words' begins like a JSON list and is none"),
        ("a.jsonl", lines({"question": "a", "context": "b", "answers": 3}), "question-answering", r"is 3: give"),
        ("a.jsonl", lines({"question": "a", "context": "b", "answers": "{"}), "question-answering", r"JSON object"),
        ("a.jsonl", lines({"context": "b", "choices": ["c", 3]}), "multiple-choice", r"choices: expected text"),
        ("a.csv", "text,label\na\n", "text-classification", r"line 2: 1 cells, the header has 2: quote cells"),
        ("a.csv", "text,label\nb,1\na,b,c\n", "text-classification", r"line 3: 3 cells, the header has 2"),
        ("a.csv", 'text\n"a\n', "fill-mask", r"line 2: no CSV \(unexpected end"),
        ("a.csv", "text\n\"a\"b\n", "fill-mask", r"line 2: no CSV"),
        ("a.txt", "a", "question-answering", r"needs question and context, which plain text has not"),
        ("a.jsonl", lines({"text": "a"}), "translation", r"task='translation': give text-generation"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_line(write, name, content, task, message):
    with pytest.raises(InputError, match=message):
        read_examples(write(name, content), task)


def test_a_column_that_is_asked_for_must_be_there(write):
    path = write("a.jsonl", lines({"text": "a", "spam": 1}))
    with pytest.raises(InputError, match=r"line 1: no 'class' \(there is: text, spam\)"):
        read_examples(path, "text-classification", label_column="class")
    with pytest.raises(InputError, match=r"line 1: no 'body'"):
        read_examples(path, "text-classification", text_column="body")
    with pytest.raises(InputError, match=r"line 1: no 'body'"):
        read_examples(path, "token-classification", text_column="body")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.jsonl cannot be read"):
        read_examples(tmp_path / "nowhere.jsonl", "fill-mask")
    with pytest.raises(InputError, match="cannot be read"):
        read_examples(tmp_path / "a\0.jsonl", "fill-mask")


def test_a_sample_is_spread_over_the_file_in_its_order_and_always_the_same():
    items = list(range(1000))
    chosen = sample(items, 50)
    assert chosen == sorted(set(chosen)) == sample(items, 50) and len(chosen) == 50
    assert 15 < sum(one < 500 for one in chosen) < 35
    assert sample(items, None) == sample(items, 1000) == sample(items, 2000) == items
    with pytest.raises(InputError, match="limit=0"):
        sample(items, 0)


def test_a_column_that_stands_twice_is_refused(write):
    with pytest.raises(InputError, match=r"a\.csv has the column 'text' twice"):
        read_examples(write("a.csv", "text,text,label\na,b,ham\n"), "text-classification")


def test_a_quote_that_is_not_closed_says_what_to_do(write):
    with pytest.raises(InputError, match=r"line 2: no CSV .*: end every cell that a quote begins with a quote"):
        read_examples(write("a.csv", 'text,label\n"a,ham\n'), "text-classification")


@pytest.mark.parametrize(
    ("name", "what"),
    [("gone", "there is no such file"), ("gone.csv", "there is no such file"), ("folder", "it is a folder")],
)
def test_what_is_not_there_or_a_folder_is_said_before_its_name_is_judged(name, what, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=rf"{name} cannot be read: {what}"):
        read_examples(tmp_path / name, "text-classification")
