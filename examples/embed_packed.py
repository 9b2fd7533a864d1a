"""Embed sentences with a model of transformers: packed in one row by attnfast, padded by sdpa.

The texts of a batch follow one another, each with positions from 0, and ``cu_seq_lens_q`` says
where each begins. Nothing is computed for padding, in no layer of the model.
"""

import argparse
import time
from pathlib import Path

import torch
from minilm import Tokenizer, find_model
from texts import passages, read_texts
from transformers import BertModel, logging

import attnfast.transformers


def pad(texts: list[list[int]]) -> dict[str, torch.Tensor]:
    """Return a batch as transformers' tokenizers make it: a row for each text, and its mask."""
    rows = [torch.tensor(ids) for ids in texts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return {
        "input_ids": ids,
        "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long(),
    }


def pack(texts: list[list[int]]) -> dict[str, torch.Tensor]:
    """Return all texts in one row: positions that start again, and where each text begins."""
    lengths = torch.tensor([len(ids) for ids in texts])
    bounds = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    return {
        "input_ids": torch.tensor([number for ids in texts for number in ids])[None],
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": int(lengths.max()),
        "max_length_k": int(lengths.max()),
    }


@torch.no_grad()
def embed(model: BertModel, texts: list[list[int]], packed: bool) -> torch.Tensor:
    """Return the mean vector of each text, of length one."""
    if packed:
        rows = model(**pack(texts)).last_hidden_state[0].split([len(ids) for ids in texts])
        means = torch.stack([row.mean(0) for row in rows])
    else:
        batch = pad(texts)
        mask = batch["attention_mask"][:, :, None]
        means = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(means, dim=-1)


def main() -> None:
    """Read the command line, embed in batches both ways in turn, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("files", nargs="*", type=Path, help="text files (default: what ships with Python)")
    add("--batch", type=int, default=16, metavar="N", help="texts of a batch")
    add("--limit", type=int, default=64, metavar="N", help="texts, spread evenly; 0 = all")
    add("--max-length", type=int, default=256, metavar="N", help="tokens of a text, 3 to 512")
    add("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    options = parser.parse_args()
    if not 3 <= options.max_length <= 512 or options.batch < 1 or options.limit < 0:
        parser.error("--max-length must be 3 to 512, --batch at least 1, --limit at least 0")
    torch.set_num_threads(options.threads)

    folder = find_model()
    tokenizer = Tokenizer(folder / "vocab.txt")
    found = list(dict.fromkeys(text for t in read_texts(options.files) for _, text in passages(*t)))
    if not found:
        parser.error("there is no text in the files")
    count = min(options.limit or len(found), len(found))
    texts = [tokenizer.encode(found[i * len(found) // count]) for i in range(count)]
    texts = [ids[: options.max_length - 1] + ids[-1:] for ids in texts]
    print(f"{count} texts, {sum(map(len, texts))} tokens, the longest has {max(map(len, texts))}")

    attnfast.transformers.register()
    logging.set_verbosity_error()  # the files hold a pooler, which is not used here
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    ways = {"padded, sdpa": ("sdpa", False), "packed, attnfast": ("attnfast", True)}
    seconds = dict.fromkeys(ways, 0.0)
    vectors: dict[str, list[torch.Tensor]] = {name: [] for name in ways}
    for start in range(0, count, options.batch):
        batch = texts[start : start + options.batch]
        for name, (implementation, packed) in ways.items():
            model.set_attn_implementation(implementation)
            if start == 0:
                embed(model, batch, packed)  # a first call is slower
            began = time.perf_counter()
            vectors[name].append(embed(model, batch, packed))
            seconds[name] += time.perf_counter() - began
    for name in ways:
        print(f"{name:18} {seconds[name]:.2f} s")
    padded, packed = (torch.cat(vectors[name]) for name in ways)
    print(f"packed is {seconds['padded, sdpa'] / seconds['packed, attnfast']:.2f} x as fast")
    print(f"largest difference between the two embeddings: {(padded - packed).abs().max():.1e}")


if __name__ == "__main__":
    main()
