"""Whether a chat template is a row of turns (torchless.chat_form), so that the runtime needs no jinja2 for it.

The form is exact, not guessed from examples. The template's syntax tree has to show that what is said is only ever
written out, and that all else depends on a message's role, on whether it is the first or the last one, on the role
of the first, and on whether the assistant is to answer. Conversations of up to three messages hold all these cases,
and for each the form has to write what jinja2 writes. Templates that count turns, refuse some, or show tools or
dates are left to jinja2.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from torchless.chat import Render, chat_templates, compile_template
from torchless.chat_form import ChatForm

ROLES = ("system", "user", "assistant")
LONGEST = 3  # a first message, one between, a last one
MESSAGES, LOOP = "messages", "loop"


def read_chat_form(source: str, special: Mapping[str, str]) -> ChatForm | None:
    """The form of this Jinja template, given its special tokens by name; None for one that has none.

    Raises InputError without jinja2.
    """
    environment = chat_templates()
    try:
        render = compile_template(source, special)
        if not Tree(environment.parse(source)).writes_turns():
            return None
        form = _form(render)
        cases = (roles for count in range(1, LONGEST + 1) for roles in itertools.product(ROLES, repeat=count))
        talks = [_talk(*roles) for roles in cases]
        exact = all(form.render(one, answer) == render(one, answer) for one in talks for answer in (False, True))
    except ValueError:  # it is no template, refuses some of these, or writes no turns that can be taken apart
        return None
    return form if exact else None


def _talk(*roles: str) -> list[dict[str, str]]:
    """Everybody says something else, with white space around it."""
    return [{"role": role, "content": f" torchless-said-{i}\n"} for i, role in enumerate(roles)]


def _form(render: Render) -> ChatForm:
    """What the shortest conversations show. ValueError where a turn does not end or begin as it does elsewhere."""
    trim = _talk("user")[0]["content"] not in render(_talk("user"), False)
    turns, opening = {}, {}
    for role in ROLES:
        talk = _talk(role, role)
        one, other = (message["content"].strip() if trim else message["content"] for message in talk)
        first, _, rest = render(talk, False).partition(one)
        between, _, after = rest.partition(other)
        if not between.startswith(after):
            raise ValueError(f"a turn of {role} ends in another way where it is the last")
        before = between[len(after) :]
        if not first.endswith(before):
            raise ValueError(f"a turn of {role} begins in another way where it is the first")
        turns[role] = before, after
        opening[role] = first[: len(first) - len(before)]
    answer = render(_talk("user"), True)[len(render(_talk("user"), False)) :]
    return ChatForm(turns, {role: text for role, text in opening.items() if text}, answer, trim)


class Tree:
    """A template's syntax tree, looked through for anything that is not one of the cases above."""

    def __init__(self, tree: Any) -> None:
        from jinja2 import nodes

        self._body = tree.body
        self._loops = {loop.target.name for loop in tree.find_all(nodes.For) if isinstance(loop.target, nodes.Name)}
        targets = [one.target for one in tree.find_all(nodes.Assign)]
        self._assigned = {target.name for target in targets if isinstance(target, nodes.Name)}

    def writes_turns(self) -> bool:
        reserved = {MESSAGES, LOOP, "add_generation_prompt"}
        if self._loops & self._assigned or reserved & (self._loops | self._assigned):
            return False
        return all(map(self._statement, self._body))

    def _statement(self, node: Any) -> bool:
        from jinja2 import nodes

        match node:
            case nodes.Output(nodes=parts):
                return all(map(self._written, parts))
            case nodes.Assign(target=nodes.Name(), node=value):
                return self._written(value)
            case nodes.Scope(body=body):
                return all(map(self._statement, body))
            case nodes.If(test=test, body=body, elif_=others, else_=other):
                return self._settled(test) and all(map(self._statement, [*body, *others, *other]))
            case nodes.For(iter=nodes.Name(name=name), body=body, else_=[], test=None, recursive=False):
                return name == MESSAGES and all(map(self._statement, body))
        return False

    def _written(self, node: Any) -> bool:
        """Whether it is a text that holds words as they are, or trimmed."""
        from jinja2 import nodes

        match node:
            case nodes.TemplateData():
                return True
            case nodes.Name(name=name) if name in self._assigned:
                return True
            case nodes.Add(left=left, right=right):
                return self._written(left) and self._written(right)
            case nodes.Concat(nodes=parts):
                return all(map(self._written, parts))
            case nodes.CondExpr(test=test, expr1=one, expr2=other):
                return self._settled(test) and self._written(one) and (other is None or self._written(other))
            case nodes.Filter(node=words, name="trim", args=[], kwargs=[], dyn_args=None, dyn_kwargs=None):
                return self._words(words)
            case nodes.Call(
                node=nodes.Getattr(node=words, attr="strip"), args=[], kwargs=[], dyn_args=None, dyn_kwargs=None
            ):
                return self._words(words)
        return self._words(node) or self._settled(node)

    def _words(self, node: Any) -> bool:
        """What the loop's message says."""
        from jinja2 import nodes

        match node:
            case (
                nodes.Getitem(node=nodes.Name(name=name), arg=nodes.Const(value="content"))
                | nodes.Getattr(node=nodes.Name(name=name), attr="content")
            ):
                return name in self._loops
        return False

    def _settled(self, node: Any) -> bool:
        """Whether it is the same in all conversations of a case."""
        from jinja2 import nodes

        match node:
            case nodes.Const():
                return True
            case nodes.Name(name=name):
                return name not in self._assigned | self._loops | {MESSAGES, LOOP}
            case nodes.Getattr(node=nodes.Name(name=name), attr="first" | "last") if name == LOOP:
                return True
            case nodes.Compare(
                expr=nodes.Getattr(node=nodes.Name(name=name), attr="index0"),
                ops=[nodes.Operand(op="eq" | "ne" | "gt", expr=nodes.Const(value=0))],
            ) if name == LOOP:
                return True
            case nodes.Compare(expr=left, ops=operands):
                return all(map(self._settled, [left, *(one.expr for one in operands)]))
            case nodes.List(items=parts) | nodes.Tuple(items=parts):
                return all(map(self._settled, parts))
            case nodes.And(left=left, right=right) | nodes.Or(left=left, right=right):
                return self._settled(left) and self._settled(right)
            case nodes.Not(node=inner) | nodes.Test(node=inner, name="defined" | "none", args=[], kwargs=[]):
                return self._settled(inner)
            case nodes.Getitem(node=of, arg=nodes.Const(value="role")) | nodes.Getattr(node=of, attr="role"):
                return self._message(of)
        return False

    def _message(self, node: Any) -> bool:
        """The loop's message, or the first of all."""
        from jinja2 import nodes

        match node:
            case nodes.Name(name=name):
                return name in self._loops
            case nodes.Getitem(node=nodes.Name(name=name), arg=nodes.Const(value=0)):
                return name == MESSAGES
        return False
