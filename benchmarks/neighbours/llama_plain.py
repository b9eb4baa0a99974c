"""llama.cpp without flash attention: slower to read a prompt, faster to go on from a long one."""

from __future__ import annotations

import llama


class Model(llama.Model):
    flash = False
