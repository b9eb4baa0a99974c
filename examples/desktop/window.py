"""The window: a text, its completion in grey behind the cursor, and how much it looks like spam. Runs no model."""

from __future__ import annotations

import queue
import tkinter as tk
from collections.abc import Callable
from tkinter import font

from worker import Done, Piece, Problem, Ready, Spam, Worker

POLL = 10  # ms between two looks at the answers, only while one is awaited
SPAM, FINE = 0.9, 0.5  # flagged from here on, fine below; between them the model is not sure
PAPER, CARD, INK, SOFT, GHOST = "#eef0f3", "#ffffff", "#1d2530", "#667180", "#9aa5b4"
RED, GREEN, AMBER, LINE = "#c62f3b", "#1f8a54", "#8a94a3", "#d5dae1"
METER = 132, 6  # pixels
KEEPS = {"Shift_L", "Shift_R", "Control_L", "Control_R", "Alt_L", "Alt_R", "Caps_Lock", "Super_L", "Meta_L"}


class Window:
    def __init__(self, root: tk.Tk, worker: Worker) -> None:
        self.root, self.worker = root, worker
        self._seen = ""  # the text that was asked about last
        self._awaited = 0  # the request whose answers count; 0 for none
        self._looking = ""  # the timer that looks for answers, while one runs
        self._loading = True
        self._build()
        root.protocol("WM_DELETE_WINDOW", self.close)
        root.bind("<Control-q>", lambda event: self.close())
        self._look()

    def _build(self) -> None:
        self.root.title("torchless")
        self.root.configure(background=PAPER)
        self.root.geometry("760x500")
        self.root.minsize(480, 320)
        family = font.nametofont("TkDefaultFont").actual("family")
        self.small = font.Font(family=family, size=10)

        head = tk.Frame(self.root, background=PAPER)
        head.pack(fill="x", padx=24, pady=(18, 12))
        large = font.Font(family=family, size=16, weight="bold")
        tk.Label(head, text="Write something", font=large, background=PAPER, foreground=INK).pack(side="left")
        subtitle = "a GPT completes it, a BERT looks for spam, both on this machine"
        tk.Label(head, text=subtitle, font=self.small, background=PAPER, foreground=SOFT).pack(
            side="left", padx=12, pady=(5, 0)
        )

        self.problem = tk.Label(
            self.root, background="#fdeaea", foreground="#8f1d27", font=self.small, justify="left", anchor="w",
            padx=14, pady=10,
        )  # fmt: skip
        self.problem.bind("<Configure>", lambda event: self.problem.configure(wraplength=event.width - 28))

        self.card = tk.Frame(
            self.root, background=CARD, highlightbackground=LINE, highlightcolor=LINE, highlightthickness=1
        )
        foot = tk.Frame(self.card, background=CARD)
        foot.pack(side="bottom", fill="x", padx=18, pady=(6, 14))
        self.text = tk.Text(
            self.card, wrap="word", undo=True, font=font.Font(family=family, size=13), background=CARD,
            foreground=INK, insertbackground=INK, selectbackground="#cfe0f7", relief="flat", borderwidth=0,
            highlightthickness=0, padx=18, pady=16, spacing2=4, spacing3=4, height=1,
        )  # fmt: skip
        self.text.pack(fill="both", expand=True)
        self.card.pack(fill="both", expand=True, padx=24, pady=(0, 24))
        self.text.tag_configure("ghost", foreground=GHOST)
        self.text.bind("<Key>", self._on_key)
        self.text.bind("<Button>", lambda event: self._dismiss())
        self.text.bind("<<Modified>>", self._on_change)
        self.text.focus_set()

        self.flag = tk.Label(
            foot, background=CARD, foreground="white", font=font.Font(family=family, size=10, weight="bold"),
            padx=10, pady=3,
        )  # fmt: skip
        self.flag.pack(side="left")
        self.meter = tk.Canvas(foot, width=METER[0] + 60, height=16, background=CARD, highlightthickness=0)
        self.meter.pack(side="left", padx=12)
        self.hint = tk.Label(foot, font=self.small, background=CARD, foreground=SOFT)
        self.hint.pack(side="right")
        self._tell("")

    def typed(self) -> str:
        """The text without the completion."""
        ghost = self.text.tag_ranges("ghost")
        if not ghost:
            return self.text.get("1.0", "end-1c")
        return self.text.get("1.0", ghost[0]) + self.text.get(ghost[1], "end-1c")

    def completion(self) -> str:
        ghost = self.text.tag_ranges("ghost")
        return self.text.get(*ghost) if ghost else ""

    def close(self) -> None:
        """The models' thread hears it at once; the process ends when that thread has."""
        self.worker.close()
        self.root.destroy()

    # What the user does

    def _on_key(self, event: tk.Event[tk.Text]) -> str | None:
        if event.keysym in KEEPS:
            return None
        if event.keysym == "Tab":
            self._take()
            return "break"
        self._dismiss()
        return None

    def _on_change(self, event: tk.Event[tk.Text]) -> None:
        if not self.text.edit_modified():
            return
        self.text.edit_modified(False)
        text = self.typed()
        if text == self._seen:  # what has changed is the completion
            return
        self._dismiss()
        self._seen = text
        if not text.strip():
            self._show_spam(None)
            return
        self._awaited = self.worker.ask(text)
        self._tell("reading …")
        if not self._looking:
            self._look()

    def _take(self) -> None:
        """The completion becomes the user's own text, as if typed."""
        taken = self.completion()
        self._dismiss()
        self.text.edit_separator()  # one step to undo
        self.text.insert("insert", taken)
        self.text.see("insert")

    def _dismiss(self) -> None:
        self.worker.cancel()
        self._awaited = 0
        if ghost := self.text.tag_ranges("ghost"):
            self._edit_unseen(lambda: self.text.delete(*ghost))
        self._tell("")

    # What the models say

    def _look(self) -> None:
        while True:
            try:
                answer = self.worker.answers.get_nowait()
            except queue.Empty:
                break
            if isinstance(answer, Problem):
                self._show_problem(answer.text)
            elif isinstance(answer, Ready):
                self._loading = False
                self._tell("")
            elif answer.request == self._awaited:  # others come too late
                self._show(answer)
        waiting = self._loading or self._awaited
        self._looking = self.root.after(POLL, self._look) if waiting else ""

    def _show(self, answer: Spam | Piece | Done) -> None:
        if isinstance(answer, Spam):
            self._show_spam(answer.probability)
            self._tell("writing …")
        elif isinstance(answer, Piece):
            self._show_piece(answer.text)
        else:
            self._awaited = 0
            self._tell("Tab takes the completion  ·  Esc drops it" if self.completion() else "")

    def _show_piece(self, piece: str) -> None:
        ghost = self.text.tag_ranges("ghost")
        if not ghost and self.text.compare("insert", "!=", "end-1c"):
            return  # the user is inside the text: a completion of its end would be in the way
        cursor = self.text.index("insert")
        self._edit_unseen(lambda: self.text.insert(ghost[1] if ghost else "insert", piece, "ghost"))
        self.text.mark_set("insert", cursor)

    def _edit_unseen(self, edit: Callable[[], object]) -> None:
        """Undo is for what the user does."""
        self.text.configure(undo=False)
        edit()
        self.text.configure(undo=True)

    def _show_spam(self, probability: float | None) -> None:
        self.meter.delete("all")
        if probability is None:
            self.flag.configure(text="", background=CARD)
            return
        spam = probability >= SPAM
        color = RED if spam else GREEN if probability < FINE else AMBER
        words = "SPAM" if spam else "fine" if probability < FINE else "not sure"
        self.flag.configure(text=words, background=color)
        width, height = METER
        top = (16 - height) // 2
        self.meter.create_rectangle(0, top, width, top + height, fill=LINE, width=0)
        self.meter.create_rectangle(0, top, round(width * probability), top + height, fill=color, width=0)
        self.meter.create_text(width + 10, 8, text=f"{probability:.0%}", anchor="w", fill=SOFT, font=self.small)

    def _show_problem(self, text: str) -> None:
        told = self.problem.cget("text")
        if text not in told:
            self.problem.configure(text=f"{told}\n{text}".strip())
            self.problem.pack(fill="x", padx=24, pady=(0, 12), before=self.card)

    def _tell(self, words: str) -> None:
        self.hint.configure(text="opening the models …" if self._loading else words)
