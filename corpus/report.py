"""The data report: what a text is like, in numbers and in words, and what to change about it.

Facts are a dict of plain values: `facts_of` takes them from the text, and whoever knows the model
puts more beside them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from corpus.baselines import spread_sample
from corpus.duplicates import PASSAGE_TOKENS, found_in, num_near_duplicates, share_in
from corpus.parts import Parts, Text
from corpus.split import BLANK, Runs, SplicedIds
from tokenizer import END_OF_TEXT, GPT2Tokenizer

Facts = dict[str, Any]
FORM = 1  # of facts that are noted: those of another one are counted anew
MAX_SAMPLED = 1 << 21  # tokens of a part: more would take longer than a second
MAX_COMPARED = 2000  # documents in search of near copies: two milliseconds each
QUANTILES = {"1%": 0.01, "25%": 0.25, "half": 0.5, "75%": 0.75, "99%": 0.99, "all": 1.0}


def facts_of(parts: Parts, tokenizer: GPT2Tokenizer) -> Facts:
    """Files, documents, tokens, what repeats, what both parts share; of much text by samples."""
    every = [*parts.texts, *parts.val_texts]
    hashes = np.concatenate([text.documents.hashes for text in every])
    lengths = np.concatenate([text.documents.lengths for text in every])
    is_known = hashes != BLANK  # blank documents count for nothing
    lengths = lengths[is_known] if is_known.any() else lengths
    trained = hashes_in(parts.texts, parts.train)
    held_out = hashes_in(parts.val_texts or parts.texts, parts.val)
    val, train = (
        spread_sample(SplicedIds.of_texts(part), MAX_SAMPLED) for part in (parts.val, parts.train)
    )
    sizes = [*map(len, tokenizer.encoding.token_byte_values()), len(END_OF_TEXT)]
    return {
        "skipped": sum(text.tokens.found["skipped"] for text in every),
        "kinds": len(np.unique(parts.used_tokens())),
        "train_tokens": sum(map(len, parts.train)),
        "val_tokens": sum(map(len, parts.val)),
        "bytes_per_token": float(np.array(sizes)[train].mean()),
        "documents": len(lengths),
        "val_documents": len(held_out),
        "copies": int((np.diff(np.sort(hashes[is_known])) == 0).sum()),
        "on_both_sides": found_in(held_out, trained),
        "shared_passages": share_in(val, train),
        "quantiles": np.quantile(lengths, [*QUANTILES.values()], method="higher").tolist(),
        "histogram": np.bincount(np.frexp(lengths)[1]).tolist(),  # by the bits of the length
    }


def hashes_in(texts: Sequence[Text], parts: Sequence[Runs]) -> np.ndarray:
    """Hashes of the documents that start in each text's part, blank ones left out."""
    found = []
    for documents, part in zip([text.documents for text in texts], parts, strict=True):
        run = np.searchsorted(part.starts, documents.starts, side="right")
        is_in = documents.starts < np.append(0, part.stops)[run]
        found.append(documents.hashes[is_in & (documents.hashes != BLANK)])
    return np.concatenate(found)


def near_copies(parts: Parts) -> str:
    """How many documents of a sample are nearly like another; or what is missing to tell."""
    sample = {}
    for text in [text.documents for text in parts.texts]:
        step = -(-len(text.starts) * len(parts.texts) // MAX_COMPARED)
        for i in range(0, len(text.starts), step):
            sample[int(text.hashes[i])] = text.ids[int(text.starts[i]) : int(text.stops[i])]
    sample.pop(BLANK, None)
    try:
        count = num_near_duplicates([*sample.values()])
    except ImportError:
        return "not looked for: pip install datasketch"
    return f"{count:,} of {len(sample):,} different documents that were compared"


def in_words(facts: Facts) -> list[str]:
    """What the documents are like, of no facts that they are not known yet."""
    if not facts:
        return ["being looked at: the next start says what its documents are like, as does data.py"]
    half, most = facts["quantiles"][2], facts["quantiles"][4]
    return [
        f"{facts['kinds']:,} different tokens, {facts['bytes_per_token']:.2f} bytes each; half of "
        f"the documents have up to {half:,}, 99% up to {most:,}; {facts['copies']:,} are copies",
        f"{facts['val_documents']:,} documents to validate on; of these {facts['on_both_sides']:,} "
        f"are trained on too, of their passages of {PASSAGE_TOKENS} tokens "
        f"{facts['shared_passages']:.1%}",
    ]


def warnings(facts: Facts, config: dict[str, Any]) -> list[str]:
    """What is amiss, each with the key that changes it."""
    copies = facts["copies"] / max(1, facts["documents"])
    per_parameter = facts["train_tokens"] / facts["parameters"]
    num_validated = min(facts["val_tokens"], config["eval_tokens"])
    has_many = not config["mask_documents"] and 2 * facts["quantiles"][2] < config["seq_len"]
    table = {
        "one document: put <|endoftext|> between texts, or give a folder or records as data": (
            facts["documents"] < 2
        ),
        f"{copies:.0%} of the documents are copies, which act as more num_epochs: take them out of "
        "data": copies > 0.01,
        f"{facts['on_both_sides']:,} documents are trained on and validated on: choose another "
        "val_data": facts["on_both_sides"] > 0,
        "much of the validation text is also trained on, its loss flatters: choose another "
        "val_data, or take near copies out of data": facts["shared_passages"] > 0.1,
        f"only {num_validated:,} tokens to validate on: raise val_fraction or eval_tokens": (
            num_validated < 1000
        ),
        f"{per_parameter:.2g} tokens for each parameter, so the text can be learnt by heart: lower "
        "embedding_dim or num_layers, or give more text as data": per_parameter < 1,
        "most windows hold several documents: mask_documents keeps them apart": (
            facts["documents"] > 1 and has_many
        ),
        f"{facts['skipped']:,} records could not be read: see data_errors": facts["skipped"] > 0,
    }
    return [text for text, is_amiss in table.items() if is_amiss]


def histogram(facts: Facts) -> list[tuple[str, int]]:
    """How many documents have how many tokens, by powers of two: those that there are."""
    counts = enumerate(facts.get("histogram", []))
    return [(f"{2**bits // 2:,} to {2**bits - 1:,}", count) for bits, count in counts if count]
