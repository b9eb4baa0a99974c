"""SmolLM2 fills in a form: what it writes is JSON of a schema, whatever it reads. Needs no torch.

    python examples/extract.py [TEXT ...]

The schema holds by construction (llguidance: pip install ".[constrain]"); what stands in the fields is the model's
word, and so small a model errs. What else has to be installed stands in smollm2.py.
"""

from __future__ import annotations

import argparse
import json
import sys

from smollm2 import smollm2

import torchless

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "city": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "city", "age"],
    "additionalProperties": False,
}
ASKED = "Extract the person's name, city and age from the text as JSON.\n\nText: {}"
SHOWN = (  # one example, so that the model sees what is meant
    ("Paul Meyer, who is 41, lives in Berlin.", {"name": "Paul Meyer", "city": "Berlin", "age": 41}),
)
TEXTS = (
    "My name is Anna Berg, I am 34 years old and I live in Oslo.",
    "At 67, the fisherman Tom Walsh still goes out every morning from Galway.",
    "Maria Silva (29) moved to Lisbon last year to study music.",
)


def extract(model: torchless.TextGeneration, text: str) -> dict[str, object]:
    """The fields of SCHEMA."""
    messages = []
    for given, fields in SHOWN:
        messages.append({"role": "user", "content": ASKED.format(given)})
        messages.append({"role": "assistant", "content": json.dumps(fields)})
    messages.append({"role": "user", "content": ASKED.format(text)})
    found: dict[str, object] = json.loads(model.chat(messages, json_schema=SCHEMA, max_new_tokens=120).text)
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("texts", nargs="*", metavar="TEXT", default=TEXTS)
    texts = arguments.parse_args().texts
    try:
        with smollm2() as model:
            for text in texts:
                print(f"{text}\n    {json.dumps(extract(model, text))}")
    except torchless.TorchlessError as error:
        print(f"extract.py: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
