"""Hugging Face's Trainer on symmetrized models, with labels. Nothing is downloaded."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from equicore import (
    Tokens,
    Tree,
    Trivial,
    assert_equivariant,
    cyclic,
    equitune,
    lambda_equitune,
)
from equicore.weights import MLPWeight

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
load_file = pytest.importorskip("safetensors.torch").load_file

HE, SHE, SIZE = 3, 7, 30
TOKENS = Tokens.from_cycles(cyclic(2), [[[HE, SHE]]], size=SIZE)
SAME = Trivial(TOKENS.group)
INPUTS = Tree({"input_ids": TOKENS, "attention_mask": SAME})
CLASSES = Tree({"logits": SAME})
WORDS = Tree({"logits": TOKENS.logits()})
TEXT = {"remove_unused_columns": False, "label_names": ["labels"]}


def texts(person, number):
    """Of three words and padding; labelled by whether one is the person."""
    ids = torch.randint(8, SIZE, (number, 4))
    labels = torch.arange(number) % 2
    ids[labels == 1, 1] = person
    ids[:, 3] = 0
    columns = {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}
    return [{name: column[i] for name, column in columns.items()} for i in range(number)]


def batch(rows):
    """Inputs, labels."""
    columns = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    labels = columns.pop("labels")
    return columns, labels


def bert(spread=0.1):
    config = transformers.BertConfig(
        vocab_size=SIZE,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=spread,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config)


def fair(spread=0.1):
    return equitune(bert(spread), INPUTS, CLASSES)


def loss(outputs, labels, num_items_in_batch):
    return cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


def accuracy(evaluated):
    return {"accuracy": (evaluated.predictions.argmax(-1) == evaluated.label_ids).mean()}


def trainer(model, folder, train, test=None, loss=loss, options=TEXT, **settings):
    arguments = transformers.TrainingArguments(
        str(folder),
        use_cpu=True,
        report_to=[],
        learning_rate=5e-3,
        **{"save_strategy": "no", "logging_steps": 1, **options, **settings},
    )
    made = transformers.Trainer(
        model,
        arguments,
        train_dataset=train,
        eval_dataset=test,
        compute_loss_func=loss,
        compute_metrics=accuracy,
    )
    made.remove_callback(transformers.ProgressCallback)
    return made


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_learns_of_one_word_what_it_is_taught_of_the_other(tmp_path):
    train, test = texts(HE, 256), texts(SHE, 64)
    settings = {"num_train_epochs": 2, "per_device_train_batch_size": 16}
    plain = trainer(bert(), tmp_path, train, test, None, {}, **settings)
    plain.train()
    assert plain.evaluate()["eval_accuracy"] < 0.75

    f = fair()
    trained = trainer(f, tmp_path, train, test, **settings)
    trained.train()
    found = trained.evaluate()
    inputs, labels = batch(test)
    logits = f(**inputs).logits.detach()
    assert found["eval_accuracy"] == (logits.argmax(-1) == labels).double().mean() > 0.95
    assert found["eval_loss"] == pytest.approx(float(cross_entropy(logits, labels)), rel=1e-4)
    predicted = trained.predict(test)
    torch.testing.assert_close(torch.tensor(predicted.predictions), logits)
    assert predicted.metrics["test_accuracy"] == found["eval_accuracy"]
    assert_equivariant(lambda x: f(**x), INPUTS, CLASSES, inputs)


@pytest.mark.parametrize("accumulated", [1, 4])
def test_the_loss_is_that_of_the_symmetrized_logits(accumulated, tmp_path):
    rows = [*texts(HE, 16), *texts(SHE, 16)]
    inputs, labels = batch(rows)
    f = fair(spread=0.5)
    with torch.no_grad():
        orbit = [f.model(**INPUTS.act(g, inputs)).logits for g in range(2)]
    mean_of_losses = sum(float(cross_entropy(y, labels)) for y in orbit) / 2
    expected = float(cross_entropy((orbit[0] + orbit[1]) / 2, labels))
    assert abs(mean_of_losses - expected) > 1e-3
    step = trainer(
        f,
        tmp_path,
        rows,
        max_steps=1,
        per_device_train_batch_size=32 // accumulated,
        gradient_accumulation_steps=accumulated,
    )
    step.train()
    assert step.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_checkpoint_goes_on_and_is_loaded(tmp_path):
    def make():
        weight = MLPWeight((32,))
        return lambda_equitune(bert(), INPUTS, CLASSES, weight, features="bert.pooler")

    rows = texts(HE, 32)
    inputs, _ = batch([*rows, *texts(SHE, 4)])
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    straight, resumed, loaded, start = make(), make(), make(), make()
    start.load_state_dict(straight.state_dict())
    trained = trainer(straight, tmp_path / "run", rows, **settings)
    trained.train()
    trained.save_model(tmp_path / "end")
    again = trainer(resumed, tmp_path / "again", rows, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    loaded.load_state_dict(load_file(tmp_path / "end" / "model.safetensors"))
    expected, before = (f.eval()(**inputs).logits for f in (straight, start))
    assert not torch.allclose(expected, before, atol=1e-3)
    torch.testing.assert_close(resumed.eval()(**inputs).logits, expected)
    assert torch.equal(loaded.eval()(**inputs).logits, expected)


def test_a_causal_language_model_with_tied_weights(tmp_path):
    config = transformers.GPT2Config(
        vocab_size=SIZE, n_positions=8, n_embd=16, n_layer=1, n_head=2,
        bos_token_id=0, eos_token_id=0, initializer_range=0.5,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    f = equitune(transformers.GPT2LMHeadModel(config), INPUTS, WORDS)
    inputs, _ = batch([*texts(HE, 8), *texts(SHE, 8)])
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[:, 0] = -100
    rows = [{n: x[i] for n, x in {**inputs, "labels": labels}.items()} for i in range(16)]

    def next_token_loss(outputs, labels, num_items_in_batch):
        logits, following = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return cross_entropy(logits, following, reduction="sum") / num_items_in_batch

    with torch.no_grad():
        expected = cross_entropy(f(**inputs).logits[:, :2].flatten(0, 1), labels[:, 1:3].flatten())
    trained = trainer(
        f, tmp_path, rows, loss=next_token_loss, max_steps=2, gradient_accumulation_steps=2
    )
    trained.train()
    assert trained.state.log_history[0]["loss"] == pytest.approx(float(expected), rel=1e-5)
    f.model.save_pretrained(tmp_path / "end")
    inner = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "end")
    again = equitune(inner, INPUTS, WORDS).eval()
    assert torch.equal(again(**inputs).logits, f.eval()(**inputs).logits)
    assert_equivariant(lambda x: f(**x), INPUTS, WORDS, inputs)


def test_settings_that_are_left_out_are_no_silent_mistakes(tmp_path):
    rows = texts(HE, 8)
    no_names = trainer(fair(), tmp_path, rows, rows, options={"remove_unused_columns": False})
    with pytest.raises((UserWarning, ValueError, TypeError), match="labels"):
        no_names.evaluate()
    dropped = trainer(fair(), tmp_path, rows, options={"label_names": ["labels"]}, max_steps=1)
    with pytest.raises(TypeError, match="input_ids"):
        dropped.train()
    no_loss = trainer(fair(), tmp_path, rows, loss=None, max_steps=1)
    with pytest.raises((UserWarning, ValueError, TypeError), match="labels"):
        no_loss.train()
