"""Small real tokenizers of the families that causal language models use, trained on the shipped questions.

Each is built as the family's own tokenizer is: the same model, normalizer, pre-tokenizer, decoder and special tokens.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import tiny
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

# The shipped questions are ASCII; from these the tokenizers learn tokens that hold several characters, or parts of them.
WORLD = (
    "你好，世界。你知道这个问题的答案吗？" * 3,
    "水は何度で凍りますか。氷は冷たいですか？" * 3,
    "هل الجليد بارد؟ ما هو الجواب الصحيح؟ " * 3,
    "האם הקרח קר? מהי התשובה הנכונה? " * 3,
    "Как называется столица? Où est le café? Straße, naïve, São Paulo. " * 3,
    "🙂🔥🧊👍🏽👩‍👩‍👧🇩🇪🇫🇷❤️ " * 6,
)

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
VOCABULARY = 700  # learnt tokens


@cache
def corpus() -> tuple[str, ...]:
    return (*(json.dumps(row) for row in tiny.arc_rows()), *WORLD)


def byte_level(
    split: str | None = None,
    normalizer: Any = None,
    ignore_merges: bool = False,
    bos: str | None = None,
    prefix_space: bool = False,
    **names: str,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE; `split` is the family's own pattern where it has one, `bos` the special token put first."""
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    levels = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=split is None)
    parts = [pre_tokenizers.Split(Regex(split), "isolated")] if split else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([*parts, levels])
    backend.decoder = decoders.ByteLevel()
    if normalizer:
        backend.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=256 + VOCABULARY,
        special_tokens=sorted(set(names.values())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpus(), trainer)
    first = processors.ByteLevel(trim_offsets=False)
    if bos:
        template = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))])
        backend.post_processor = processors.Sequence([first, template])
    else:
        backend.post_processor = first
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


@cache
def learnt_words() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens and merges over words that begin with `▁`, as SentencePiece learns them."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    backend.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=VOCABULARY, show_progress=False))
    state = json.loads(backend.to_str())["model"]
    return state["vocab"], [tuple(merge) for merge in state["merges"]]


def sentencepiece(
    normalizer: Any = None, pre_tokenizer: Any = None, decoder: Sequence[Any] = (), bos: bool = True, **names: str
) -> PreTrainedTokenizerFast:
    """SentencePiece BPE with byte fallback: characters it does not know become the tokens of their bytes."""
    vocab, merges = learnt_words()
    tokens = dict.fromkeys((*names.values(), *BYTES, "▁", "▁▁", "▁▁▁▁", "\n", *vocab))
    model = models.BPE(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[("▁", "▁"), ("▁▁", "▁▁"), *merges],
        unk_token=names["unk_token"],
        fuse_unk=True,
        byte_fallback=True,
    )
    return _with_bos(Tokenizer(model), normalizer, pre_tokenizer, decoder, bos, names)


def unigram() -> PreTrainedTokenizerFast:
    """Unigram with byte fallback, as newer SentencePiece models have it."""
    learner = Tokenizer(models.Unigram())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(
        corpus(), trainers.UnigramTrainer(vocab_size=VOCABULARY, unk_token="<unk>", show_progress=False)
    )
    learnt = [(piece, score) for piece, score in json.loads(learner.to_str())["model"]["vocab"] if piece != "<unk>"]
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    pieces = [*((name, 0.0) for name in names.values()), *((byte, -20.0) for byte in BYTES), *learnt]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    decoder = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return _with_bos(backend, None, pre_tokenizers.Metaspace(), decoder, True, names)


def _with_bos(
    backend: Tokenizer, normalizer: Any, pre_tokenizer: Any, decoder: Sequence[Any], bos: bool, names: dict[str, str]
) -> PreTrainedTokenizerFast:
    if normalizer:
        backend.normalizer = normalizer
    if pre_tokenizer:
        backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.Sequence(list(decoder))
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names.values()])
    if bos:
        token = names["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{token} $A", special_tokens=[(token, backend.token_to_id(token))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def word_piece(lowercase: bool) -> PreTrainedTokenizerFast:
    """WordPiece as BERT has it: words it does not know are [UNK], and white space is not kept."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=list(names.values()), show_progress=False)
    backend.train_from_iterator(corpus(), trainer)
    ends = [(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


SPACES = normalizers.Replace(" ", "▁")
FALLBACK = (decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse())
NAMES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def llama2() -> PreTrainedTokenizerFast:
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), SPACES])
    return sentencepiece(normalizer, decoder=(*FALLBACK, decoders.Strip(" ", 1, 0)), **NAMES)


def mistral() -> PreTrainedTokenizerFast:
    spaces = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return sentencepiece(pre_tokenizer=spaces, decoder=(*FALLBACK, decoders.Strip(" ", 1, 0)), **NAMES)


def gemma() -> PreTrainedTokenizerFast:
    merged = pre_tokenizers.Split(" ", "merged_with_previous")
    return sentencepiece(SPACES, merged, FALLBACK, **NAMES | {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"})


END = "<|endoftext|>"

LOSSLESS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "gpt2": lambda: byte_level(eos_token=END),
    "roberta": lambda: byte_level(bos="<s>", prefix_space=True, bos_token="<s>", eos_token="</s>", pad_token="<pad>"),
    "one_special": lambda: byte_level(bos=END, bos_token=END, eos_token=END, pad_token=END),
    "llama3": lambda: byte_level(LLAMA3_SPLIT, ignore_merges=True, bos="<|b|>", bos_token="<|b|>", eos_token="<|e|>"),
    "qwen": lambda: byte_level(QWEN_SPLIT, normalizers.NFC(), eos_token=END, pad_token=END),
    "llama2": llama2,
    "llama2_without_bos": lambda: sentencepiece(
        normalizers.Sequence([normalizers.Prepend("▁"), SPACES]),
        decoder=(*FALLBACK, decoders.Strip(" ", 1, 0)),
        bos=False,
        **NAMES,
    ),
    "mistral": mistral,
    "gemma": gemma,
    "unigram": unigram,
    "byt5": ByT5Tokenizer,
}
LOSSY = {"bert_cased": lambda: word_piece(False), "bert_uncased": lambda: word_piece(True)}


@cache
def tokenizer(family: str) -> Any:
    return (LOSSLESS | LOSSY)[family]()


def _byte_alphabet() -> dict[str, int]:
    """The character by which byte-level BPE shows each byte: itself where it is printable, else the next one past 255."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTE_ALPHABET = _byte_alphabet()


def token_bytes(family: str, ids: Iterable[int]) -> list[bytes]:
    """The UTF-8 that each token of a lossless family stands for, read off its name in the vocabulary."""
    special = set(tokenizer(family).all_special_tokens)
    names = tokenizer(family).convert_ids_to_tokens(list(ids))
    if "<0x00>" in tokenizer(family).get_vocab():
        spell = lambda name: bytes([int(name[3:5], 16)]) if name in BYTES else name.replace("▁", " ").encode()  # noqa: E731
    elif family == "byt5":
        spell = lambda name: bytes([ord(name)])  # noqa: E731
    else:
        spell = lambda name: bytes(BYTE_ALPHABET[character] for character in name)  # noqa: E731
    return [name.encode() if name in special else spell(name) for name in names]
