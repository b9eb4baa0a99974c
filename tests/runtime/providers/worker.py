"""Loads bundles in an environment of its own: reads jobs as JSON, prints what became of each as JSON.

A job: {"bundle", "provider", "strict", "cache"}; a provider is a name, a list of providers, or a class with its
options, {"CUDA": {"device_id": 1}}.
"""

import json
import logging
import os
import sys

import numpy as np

import torchless
from torchless.providers import Plugin


def asked(given):
    if isinstance(given, list):
        return [asked(one) for one in given]
    if isinstance(given, dict):
        ((name, options),) = given.items()
        return (Plugin if name == "Plugin" else getattr(torchless, name))(**options)
    return given


def stepped(decoder, count):
    """Two rows read and continued; where their cache lies."""
    cache = decoder.new_cache(2)
    for row in (0, 1):
        decoder.extend(cache, [5, 1, 4], row=row)
    step = decoder.stepper(cache)
    for _ in range(count):
        logits = step([3, 4])
    cache.reorder(np.array([1, 0]), 0)
    return {
        "places": sorted({buffer.device_name() for buffer in cache.buffers}),
        "logits": logits.shape,
        "records": decoder.device.records,
        "recorded": len(decoder.device._numbers),
    }


def done(job):
    try:
        model = torchless.load(job["bundle"], provider=asked(job["provider"]), strict=job.get("strict", False))
    except torchless.TorchlessError as error:
        return {"error": type(error).__name__, "said": str(error)}
    provider = model.provider
    found = {
        "provider": provider.name,
        "reason": provider.reason,
        "graph": model.graph.file,
        "options": model.session.get_provider_options().get(provider.ort_name, {}),
        "nodes": dict(provider.placement.nodes) if provider.placement else None,
    }
    if "ids" in job:
        found["ids"] = list(model(job["ids"], max_new_tokens=6).token_ids)
    if "steps" in job:
        found |= stepped(model.decoder, job["steps"])
    if "text" in job:
        found["scores"] = dict(model(job["text"]).scores)
    return found


logging.getLogger("torchless").addHandler(logging.NullHandler())  # warnings are no part of the answers
print(json.dumps([done(job) for job in json.load(sys.stdin)]), flush=True)
os._exit(0)  # stand-ins are not made to be unloaded
