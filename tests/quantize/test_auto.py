"""The recipe for a budget: who wins, who is refused and why, and what is left behind when none holds."""

from __future__ import annotations

import errno
import json
import math

import pytest
import tiny

import torchless
from torchless.bundle import read_bundle
from torchless.errors import BundleError, InputError, QuantizationError
from torchless.quantize import auto, pace, quantize
from torchless.quantize.budget import TARGETS, Budget, Target, Told
from torchless.quantize.draft import Draft
from torchless.quantize.job import Job
from torchless.quantize.loss import Kind, Loss, measure_losses
from torchless.quantize.recipe_file import FIELDS
from torchless.quantize.recipes import RECIPES
from torchless.quantize.results import Interval
from torchless.quantize.speed import Shape

KIND = Kind("perplexity", "relative rise of perplexity", None)
DATA = tiny.SENTENCES * 3
ANY = Shape("text", 1, 8)


@pytest.fixture
def scripted(monkeypatch):
    """Speeds over float32 and losses by recipe, and speeds at the corners; "-mixed" stands for any mixture."""

    def script(speeds=None, losses=None, corners=None):
        def name(path):
            made = read_bundle(path).manifest.recipe["name"]
            return made

        def race(source, bundles, shapes, progress):
            checked = shapes in pace.CHECKED.values()
            given = (corners or {}) if checked else (speeds or {})
            return [{ANY: (given.get(name(path), 1.5),) * 3} for path in bundles]

        def measure(source, bundles, examples, progress):
            found = [losses[name(path)](read_bundle(path)) if callable(losses[name(path)]) else losses[name(path)]
                     for path in bundles]  # fmt: skip
            return [Loss(KIND, Interval(loss, loss - 0.001, loss + 0.001)) for loss in found]

        monkeypatch.setattr(auto, "race", race)
        if losses is not None:
            monkeypatch.setattr(auto, "measure_losses", measure)

    return script


def chosen(bundle, tmp_path, lines=None, **options):
    told = Told(lines.append) if lines is not None else None
    out = quantize(bundle, tmp_path / "out", recipe=options.pop("recipe", "auto"), told=told, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "something was left behind"
    return read_bundle(out, verify=True).manifest.recipe


def refused(bundle, tmp_path, match, error=QuantizationError, **options):
    with pytest.raises(error, match=match):
        quantize(bundle, tmp_path / "out", **{"recipe": "auto", **options})
    assert list(tmp_path.iterdir()) == [], "something was left behind"


LOSSES = {"int8": 0.001, "int8-block": 0.0005, "int4": 0.004, "int4-all": 0.03, "int4-all-mixed": 0.01}


def test_the_fastest_that_holds_the_budget_wins_and_is_told(gpt_bundle, tmp_path, scripted):
    scripted({"int4-all": 3, "int4": 2, "int8": 1.8, "int8-block": 1.7}, LOSSES)
    lines = []
    record = chosen(gpt_bundle, tmp_path, lines, data=DATA)
    assert record["name"] == "int4"
    assert any("int4-all: relative rise of perplexity 3.00 % (2.90 % to 3.10 %)" in line for line in lines)
    assert any("3.00 times float32's speed: loses too much" in line for line in lines)
    assert (
        lines[-1]
        == "chosen: int4, the fastest of those that hold a loss of 0.5 %, nowhere slower than float32 here"
    )
    told = record["auto"]
    assert (told["max_loss"], told["max_size"], told["target"], told["examples"]) == (0.005, None, None, 18)
    by_name = {one["name"]: one for one in told["tried"]}
    assert by_name["int4"]["outcome"] == "chosen" and by_name["int4"]["loss"]["value"] == 0.004
    assert by_name["int4"]["speed"] == pytest.approx(2) and by_name["int4"]["checked"] == {"text 1x8": 1.5}
    assert by_name["int4-all"]["outcome"] == "loses too much"


def test_the_order_of_speed_decides_not_the_order_of_the_table(bert_bundles, tmp_path, scripted):
    scripted({"int4": 9}, LOSSES)
    assert chosen(bert_bundles["text-classification"], tmp_path, data=DATA)["name"] == "int4"


def test_an_interval_that_reaches_beyond_the_budget_is_told(gpt_bundle, tmp_path, scripted):
    scripted({}, dict.fromkeys(LOSSES, 0.0045))
    lines = []
    chosen(gpt_bundle, tmp_path, lines, data=DATA)
    assert lines[-1] == "its interval reaches beyond what may be lost: more data would tell"


def test_a_candidate_that_is_slower_than_float32_anywhere_is_refused(gpt_bundle, tmp_path, scripted):
    scripted({"int4": 2, "int4-all": 3}, LOSSES | {"int4-all": 0}, {"int4-all": 0.5, "int4": 0.9})
    lines = []
    record = chosen(gpt_bundle, tmp_path, lines, data=DATA)
    assert record["name"] in ("int8", "int8-block")
    assert any("int4-all" in line and "(0.50 of its speed: text, 1 x 8 tokens)" in line for line in lines)
    assert any("int4:" in line and "slower than float32 here (0.90" in line for line in lines)


def test_a_mixture_of_a_faster_recipe_beats_a_slower_one(gpt_bundle, tmp_path, scripted):
    """Three of ten matrices must climb; other recipes are slower than what comes out."""

    def loss(bundle):
        climbed = bundle.manifest.recipe["matrices"]
        assert all(
            scheme == {"kind": "blocks", "bits": 8, "size": 128, "method": "search"} for scheme in climbed.values()
        )
        return 0.03 - 0.01 * len(climbed)

    scripted({"int4-all": 3, "int4-all-mixed": 2.5}, LOSSES | {"int4-all-mixed": loss})
    lines = []
    record = chosen(gpt_bundle, tmp_path, lines, data=DATA)
    assert record["name"] == "int4-all-mixed" and len(record["matrices"]) == 3
    assert any("with 3 of 10 matrices in a finer scheme" in line for line in lines)
    asked = [one["outcome"] for one in record["auto"]["tried"] if one["name"] == "int4-all-mixed"]
    assert len(asked) == 4 and sum("loses too much" in one for one in asked) == 2  # 1, 2, 4, then 3


def test_the_worst_matrices_climb_first(gpt_bundle, tmp_path, scripted):
    scripted({"int4-all": 3, "int4-all-mixed": 2.5}, LOSSES | {"int4-all-mixed": 0.002})
    record = chosen(gpt_bundle, tmp_path, data=DATA)
    job = Job(gpt_bundle, DATA, verify=False)
    parts = auto.parts_of(job, RECIPES["int4-all"])
    single = auto.measure(job, RECIPES["int4-all"], [(part.name, [part]) for part in parts], print)
    assert list(record["matrices"]) == [max(single, key=lambda one: one.error).name]


def test_a_mixture_that_is_slower_than_another_recipe_loses(gpt_bundle, tmp_path, scripted):
    scripted({"int4-all": 3, "int4-all-mixed": 1.2}, LOSSES | {"int4-all-mixed": 0.001})
    assert chosen(gpt_bundle, tmp_path, data=DATA)["name"] != "int4-all-mixed"


def test_a_mixture_that_is_another_recipe_is_not_taken_for_a_new_one(gpt_bundle, tmp_path, scripted):
    scripted({"int4-all": 3, "int4-all-mixed": 5}, LOSSES | {"int4-all-mixed": 0.004, "int4": 0.004})
    job = Job(gpt_bundle, DATA, verify=False)
    head = next(part for part in auto.parts_of(job, RECIPES["int4-all"]) if part.role == "ends")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto, "ladder", lambda *parts, **options: [(head.name, RECIPES["int4"].ends)])
        record = chosen(gpt_bundle, tmp_path, data=DATA)
    assert record["name"] != "int4-all-mixed"
    assert "the same as another recipe" in [one["outcome"] for one in record["auto"]["tried"]]


def test_a_named_recipe_climbs_until_it_holds_even_to_float(gpt_bundle, tmp_path, scripted):
    def loss(bundle):
        return 0.2 - 0.01 * len(bundle.manifest.recipe["left_in_float"])

    scripted({}, {"int8": 0.3, "int8-mixed": loss})
    record = chosen(gpt_bundle, tmp_path, recipe="int8", data=DATA, max_loss=0.155)
    assert record["name"] == "int8-mixed" and len(record["left_in_float"]) == 5
    assert record["auto"]["why"] == "which holds a loss of 15.5 %"
    again = {name: record[name] for name in FIELDS if name in record}
    (tmp_path / "recipe.json").write_text(json.dumps(again))
    made = read_bundle(quantize(gpt_bundle, tmp_path / "again", recipe=tmp_path / "recipe.json", data=DATA))
    assert made.manifest.files == read_bundle(tmp_path / "out").manifest.files


def test_an_encoders_mixture_is_of_what_an_encoder_gets(bert_bundles, tmp_path, scripted):
    def loss(bundle):
        return 0.2 - 0.01 * len(bundle.manifest.recipe.get("matrices", {}))

    scripted({}, {"int4": 0.3, "int4-mixed": loss})
    record = chosen(bert_bundles["text-classification"], tmp_path, recipe="int4", data=DATA, max_loss=0.185)
    assert record["name"] == "int4-mixed" and len(record["matrices"]) == 2
    assert (record["body"]["size"], record["migrate"]) == (32, 0.4)


def test_a_recipe_that_fails_up_to_its_last_matrix_has_a_nearest(gpt_bundle, tmp_path, scripted):
    scripted({}, {"int8": 0.3, "int8-mixed": 0.2})
    message = r"the recipe int8 does not hold a loss of 1 %: the nearest is int8-mixed .*: pass max_loss=0\.2$"
    refused(gpt_bundle, tmp_path, message, recipe="int8", data=DATA, max_loss=0.01)


def test_a_mixture_is_not_made_larger_than_max_size(gpt_bundle, tmp_path, tmp_path_factory, scripted):
    small = read_bundle(quantize(gpt_bundle, tmp_path_factory.mktemp("small") / "out", recipe="int4-all")).size
    written = []
    scripted({}, {"int4-all": 0.03, "int4-all-mixed": lambda bundle: written.append(bundle.size) or 0.02})
    asked = {"recipe": "int4-all", "data": DATA, "max_loss": 0.01}
    refused(gpt_bundle, tmp_path, r"does not hold a loss of 1 % and [\d,]+ bytes", max_size=small + 10_000, **asked)
    assert written and max(written) <= small + 10_000 + 4096  # sizes are foretold, but for the padding to pages
    written.clear()
    refused(gpt_bundle, tmp_path, r"the nearest is int4-all .*: pass max_loss=0\.03$", max_size=small, **asked)
    assert not written


def test_max_size_alone_takes_the_most_faithful_that_fits(gpt_bundle, tmp_path, tmp_path_factory, scripted):
    scripted()
    small = {name: quantize(gpt_bundle, tmp_path_factory.mktemp(name) / "out", recipe=name) for name in RECIPES}
    sizes = {name: read_bundle(path).size for name, path in small.items()}
    assert sizes["int8"] > sizes["int4"] > sizes["int4-all"]
    assert chosen(gpt_bundle, tmp_path, max_size=sizes["int4"])["name"] == "int4"


def test_without_a_budget_int8_is_taken_unless_it_is_slower_than_float32(gpt_bundle, tmp_path, scripted):
    scripted(corners={"int8": 0.8})
    record = chosen(gpt_bundle, tmp_path)
    assert record["name"] == "int8-block"
    assert record["auto"]["why"] == "the most faithful that is nowhere slower than float32 here"


@pytest.mark.parametrize("target", ["cpu-avx2", "cpu-vnni"])
def test_for_another_machine_nothing_is_timed(target, gpt_bundle, bert_bundles, tmp_path, monkeypatch, scripted):
    scripted({}, dict.fromkeys(LOSSES, 0.0))
    monkeypatch.setattr(auto, "race", None)
    record = chosen(gpt_bundle, tmp_path, data=DATA, target=target)
    assert record["name"] == "int4-all" and record["auto"]["tried"][0]["speed"] is None
    assert record["auto"]["why"] == f"the first of those that hold a loss of 0.5 % in the order for {target}"
    quantize(bert_bundles["fill-mask"], tmp_path / "bert", recipe="auto", target=target)
    assert read_bundle(tmp_path / "bert").manifest.recipe["name"] == "int8"


def test_for_cuda_float16_comes_first_and_is_judged_here_but_not_timed(gpt_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(auto, "race", None)
    made = quantize(gpt_bundle, tmp_path / "out", recipe="auto", target="cuda", data=DATA, max_loss=0.05)
    manifest = read_bundle(made).manifest
    assert manifest.recipe["name"] == "fp16" and manifest.graphs[0].providers == ("cuda", "directml", "cpu")
    assert all(abs(one["loss"]["value"]) > 0 for one in manifest.recipe["auto"]["tried"])


def test_a_target_is_one_line_of_the_table(gpt_bundle, tmp_path, monkeypatch):
    monkeypatch.setitem(TARGETS, "cuda", Target(encoder=("int4",), decoder=("int4", "int8")))
    assert Budget(0.1, None, "cuda").recipes(decodes=True) == [RECIPES["int4"], RECIPES["int8"]]
    assert Budget(None, 9, "cuda").recipes(decodes=True) == [RECIPES["int8"], RECIPES["int4"]]


def test_when_nothing_holds_the_nearest_is_named_and_what_gives_way(gpt_bundle, tmp_path, scripted):
    scripted({}, dict.fromkeys([*LOSSES, *(f"{name}-mixed" for name in RECIPES)], 0.02) | {"int8": 0.0123})
    refused(
        gpt_bundle,
        tmp_path,
        r"no recipe holds a loss of 1 %: the nearest is int8 \(relative rise of perplexity 1\.23 % .*\): "
        r"pass max_loss=0\.0123$",
        data=DATA,
        max_loss=0.01,
    )
    refused(
        gpt_bundle,
        tmp_path,
        r"no recipe holds a loss of 5 % and 1,000 bytes: the nearest is int4-all .*: pass max_size=\d+$",
        data=DATA,
        max_loss=0.05,
        max_size=1000,
    )


def test_when_all_are_slower_than_float32_that_is_said(gpt_bundle, tmp_path, scripted):
    scripted(corners=dict.fromkeys(RECIPES, 0.5))
    refused(gpt_bundle, tmp_path, r"no recipe holds no budget.*slower than float32 here \(0\.50 .*keep the float32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_loss": 0.01}, r"max_loss is measured on texts: pass data= as well"),
        *(({"max_loss": value, "data": DATA}, r"max_loss=.*: give a share from 0 to 1, such as 0\.005")
          for value in (-0.1, 2, math.nan, "1%", True)),
        *(({"max_size": value}, r"max_size=.*: give a whole number") for value in (0, -1, 2.5, "20MB")),
        ({"target": "tpu"}, r"target='tpu': give cpu, cpu-avx2, cpu-vnni, cuda, tensorrt or openvino"),
        ({"target": "cpu-avx2", "recipe": "int8"}, r"target='cpu-avx2' chooses a recipe itself"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_before_anything_is_read(options, message, tmp_path):
    refused(tmp_path.parent / "nowhere", tmp_path, message, InputError, **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"mails\.jsonl holds no text"),
        ('{"text": "A prize", "label": "junk"}', r"junk"),
        ('{"text": "A prize"}\n{"text": "", "label": 1}', r"line 2: 'text' is empty"),
    ],
)
def test_data_that_does_not_fit_is_refused(content, message, bert_bundles, tmp_path, tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "mails.jsonl"
    file.write_text(content)
    refused(bert_bundles["text-classification"], tmp_path, message, InputError, data=file)


def test_a_quantized_bundle_is_refused(gpt_bundle, tmp_path, tmp_path_factory):
    small = quantize(gpt_bundle, tmp_path_factory.mktemp("small") / "int4", recipe="int4")
    refused(small, tmp_path, r"int4 is quantized already")


@pytest.mark.parametrize(
    ("failure", "error", "match"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (OSError(errno.ENOSPC, "No space left on device"), BundleError, "No space left"),
    ],
)
@pytest.mark.parametrize("place", ["writing", "judging", "timing"])
def test_an_interruption_or_a_full_disk_leaves_nothing_behind(
    place, failure, error, match, gpt_bundle, tmp_path, monkeypatch, scripted
):
    scripted({}, LOSSES)

    def fail(*arguments, **options):
        raise failure

    if place == "writing":
        stored = Draft._external
        monkeypatch.setattr(
            Draft, "_external", lambda self, name, array: fail() if "scale" in name else stored(self, name, array)
        )
    else:
        monkeypatch.setattr(auto, {"judging": "measure_losses", "timing": "race"}[place], fail)
    refused(gpt_bundle, tmp_path, match, error, data=DATA)


@pytest.mark.parametrize("data", [["One line."], [" ".join(tiny.SENTENCES * 20)] * 2])
def test_one_line_is_enough_and_a_long_one_is_cut_to_the_context(
    data, gpt_bundle, bert_bundles, tmp_path, scripted
):
    scripted()
    for name, bundle in (("gpt", gpt_bundle), ("bert", bert_bundles["feature-extraction"])):
        out = quantize(bundle, tmp_path / name, recipe="auto", data=data, max_loss=1)
        assert read_bundle(out).manifest.recipe["auto"]["examples"] == len(data)


def losses(bundle, recipe, examples, folder):
    """Of one recipe, by the real measurement."""
    made = quantize(bundle, folder / "made", recipe=recipe)
    job = Job(bundle, examples, verify=False)
    (loss,) = measure_losses(job.source.path, [made], job.examples, lambda *what: None)
    return loss, torchless.load(bundle), torchless.load(made)


def test_the_loss_of_a_generator_is_the_relative_rise_of_perplexity(gpt_bundle, tmp_path):
    loss, first, other = losses(gpt_bundle, "int4", ["\n".join(tiny.SENTENCES)], tmp_path)
    perplexities = []
    for model in (first, other):
        ids = model.tokenizer.ids("\n".join(tiny.SENTENCES))
        windows = [ids[start : start + model.context_length] for start in range(0, len(ids), model.context_length)]
        logprobs = [one for window in windows if len(window) > 1 for one in model.score(window).logprobs]
        perplexities.append(math.exp(-sum(logprobs) / len(logprobs)))
    assert loss.kind.metric == "perplexity"
    assert loss.interval.low <= loss.interval.value <= loss.interval.high and abs(loss.interval.value) > 1e-4
    assert loss.interval.value == pytest.approx(perplexities[1] / perplexities[0] - 1, rel=1e-2)


def test_the_loss_of_a_classifier_is_accuracy_or_else_changed_answers(bert_bundles, tmp_path, tmp_path_factory):
    bundle = bert_bundles["text-classification"]
    loss, first, other = losses(bundle, "int4", tiny.SENTENCES, tmp_path)
    answers = [[one.label for one in model(tiny.SENTENCES)] for model in (first, other)]
    changed = sum(one != two for one, two in zip(*answers, strict=True)) / len(tiny.SENTENCES)
    assert (loss.kind.metric, loss.interval.value) == ("agreement", pytest.approx(changed))
    file = tmp_path_factory.mktemp("data") / "mails.jsonl"
    file.write_text(
        "\n".join(json.dumps({"text": text, "label": label}) for text, label in zip(tiny.SENTENCES, answers[0]))
    )
    labelled = losses(bundle, "int4", file, tmp_path_factory.mktemp("labelled"))[0]
    assert (labelled.kind.metric, labelled.interval.value) == ("accuracy", pytest.approx(changed))


def test_a_share_that_no_example_lost_may_be_lost_by_others(bert_bundles, tmp_path):
    file = tmp_path / "mails.jsonl"
    file.write_text("\n".join(json.dumps({"text": text, "label": 0}) for text in tiny.SENTENCES))
    loss = losses(bert_bundles["text-classification"], "fp16", file, tmp_path)[0]
    assert loss.kind.metric == "accuracy"
    assert loss.interval == Interval(0, 0, min(1, 3 / len(tiny.SENTENCES)))


def test_the_loss_of_an_embedding_is_its_cosine_error(bert_bundles, tmp_path):
    loss, first, other = losses(bert_bundles["feature-extraction"], "int4", tiny.SENTENCES, tmp_path)
    one, two = (model(tiny.SENTENCES, truncation=True, normalize=True) for model in (first, other))
    assert loss.kind.metric == "cosine_error"
    assert loss.interval.value == pytest.approx(float(1 - (one * two).sum(axis=1).mean()), rel=1e-2)


def test_rounds_are_timed_for_every_bundle_at_every_shape_that_fits(
    gpt_bundle, bert_bundles, tmp_path, monkeypatch
):
    monkeypatch.setattr(pace, "SECONDS", 0.0)
    monkeypatch.setattr("torchless.quantize.speed.TURN", 0.0)
    told = []
    for decodes, bundle in ((True, gpt_bundle), (False, bert_bundles["fill-mask"])):
        made = quantize(bundle, tmp_path / str(decodes))
        found = pace.race(bundle, [made, bundle], pace.CHECKED[decodes], lambda *what: told.append(what))
        context = read_bundle(bundle).manifest.context_length
        assert len(found) == 2 and len(found[0]) == 4
        assert all(len(one) == 3 and min(one) > 0 for ratios in found for one in ratios.values())
        assert max(shape.length for shape in found[0]) == context
        assert 0.2 < pace.mean_ratio(found[1]) < 5  # the float32 bundle beside itself
    assert ("timing", 0, 7) in told


def test_a_ratio_is_how_many_times_as_fast_as_the_source(gpt_bundle, monkeypatch):
    monkeypatch.setattr(pace, "SECONDS", 0.0)
    seen = []

    def timer(runner, ids, calls):
        if runner not in seen:
            seen.append(runner)
        return [(0.4, 0.1, 0.8)[seen.index(runner)]] * calls

    monkeypatch.setattr(pace, "TIMERS", {"decode": timer})
    found = pace.race(gpt_bundle, [gpt_bundle, gpt_bundle], pace.RANKED[True], print)
    assert [pace.mean_ratio(one) for one in found] == pytest.approx([4.0, 0.5])
    assert [len(pace.slower(one)) for one in found] == [0, 1]


def test_slower_means_in_every_round_and_by_more_than_chance():
    shapes = [Shape("text", 1, length) for length in range(1, 5)]
    rounds = [(0.9, 0.95, 0.8), (0.9, 1.01, 0.8), (0.99, 0.98, 0.99), (2.0, 1.5, 1.8)]
    ratios = dict(zip(shapes, rounds, strict=True))
    assert pace.slower(ratios) == {shapes[0]: 0.9}
    assert pace.mean_ratio(ratios) == pytest.approx((0.9 * 0.9 * 0.99 * 1.8) ** 0.25)
    assert pace.mean_ratio({}) == 1.0


def test_lengths_are_cut_to_the_context_and_no_shape_is_timed_twice():
    shapes = (Shape("prompt", 1, 8), Shape("prompt", 1, 64), Shape("prompt", 1, 512), Shape("decode", 1, 8))
    assert pace.cut(shapes, 20) == [Shape("prompt", 1, 8), Shape("prompt", 1, 20), Shape("decode", 1, 3)]
    assert pace.cut(shapes, 5) == [Shape("prompt", 1, 5)]


def test_advice_on_the_size_is_not_refused_for_speed_afterwards(gpt_bundle, tmp_path, scripted):
    scripted(corners=dict.fromkeys(RECIPES, 0.5))
    message = (
        r"the nearest is int4-all .*: pass max_size=\d+ and pass recipe='int4-all', since it is slower than float32"
    )
    refused(gpt_bundle, tmp_path, message, max_size=1000)
