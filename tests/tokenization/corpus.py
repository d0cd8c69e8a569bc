"""Texts that tokenizers get wrong."""

from __future__ import annotations

import unicodedata

ENGLISH = "It's the sliding window (w = 512) that keeps attention linear: don't truncate, split!"

TEXTS = {
    "english": ENGLISH,
    "nfc": unicodedata.normalize("NFC", "Ångström résumé naïve Đại học Việt Nam"),
    "nfd": unicodedata.normalize("NFD", "Ångström résumé naïve Đại học Việt Nam"),
    "compatibility": "ﬁne ﬂour ① ½ Ⅷ ㎏ ｆｕｌｌ ｗｉｄｔｈ ™ ℡",
    "german": "Straße GROẞ Übergröße ÄÖÜ äöü",
    "turkish": "İstanbul ışık IĞDIR",
    "cjk": "长文档的注意力机制。日本語のテキスト、ひらがな、カタカナ。한국어 텍스트 𠀀𠀁",
    "emoji": "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 ☕️ 🇩🇪 1️⃣",
    "rtl": "שלום עולם مرحبا بالعالم \u200fabc\u200e ١٢٣",
    "indic": "नमस्ते दुनिया ไทยไม่มีช่องว่าง தமிழ்",
    "control": "a\x00b\x01c\x07d\x7fe\x85f\u200bg\ufeffh\u2028i\u2029j\ufffdk\xadl",
    "blanks": "  two  blanks\tand\ttabs\n\nlines\r\nend\u00a0nbsp\u3000ideographic   ",
    "only_blanks": " \t\n \r\n  ",
    "one_blank": " ",
    "empty": "",
    "special_bert": "[CLS] a [MASK] b[SEP]c [PAD] [UNK] [cls] [ MASK ]",
    "special_roberta": "<s> a <mask> b</s>c <pad> <unk> <MASK> < s >",
    "special_t5": "The <extra_id_0> walks <extra_id_1>in <extra_id_99> park <extra_id_100></s>",
    "code": "def f(x):\n\treturn {k: v**2 for k, v in x.items()}  # naïve\n",
    "url": "https://example.org/a_b/c?d=e&f=%20g#h user@example.org",
    "long_word": "a" * 300 + "é" * 120,
    "numbers": "3.14159 1,000,000 −5 10⁻³ 0x1F 2026-09-01",
    "punctuation": "¿Qué? «Oui» “quotes” ‘single’ … — – · • ‐ ‑",
    "metaspace": "▁a ▁ b▁▁c Ġd ##e @@f",
    "underscores": "snake_case __init__ _a_",
    "private": "\ue000\uf8ff\U0010ffff\U000e0001",
    "math": "𝒜𝔅 ∑∫√ x² ≤ ≥ ∞ 𝟘𝟙",
    "mixed_case": "iPhone McDonald NASA nasa ǅ ΣΑΣ",
}
