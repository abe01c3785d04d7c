"""A Llama in llama.cpp's GGUF file, written out as the Hugging Face folder that vLLM loads.

`python -m stoker.gguf_weights FILE FOLDER` prints a line before each step. The weights become float32: what a
CPU computes in, and no second rounding of what the file holds. Going through transformers gives the same bits
and takes four times as long.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

Weights = dict[str, NDArray[np.float32]]

CONTROL_TOKEN = 3
"""GGUF's type of tokens like <|im_start|>, which no text may spell."""

NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(file: Path, folder: Path) -> None:
    """Write the whole model of `file` into `folder`."""
    print("reading the file")
    source = GGUFReader(file)
    config = llama_config(source)
    print("converting the weights")
    weights = {
        hugging_face_name(tensor.name): _unpermuted(tensor, config)
        for tensor in source.tensors
        if tensor.name != "rope_freqs.weight"
    }
    print("writing")
    save_model(folder, config, weights)
    save_tokenizer(source, folder)


def llama_config(source: Any) -> dict[str, Any]:
    """Return the config.json of an open GGUF file."""

    def value(key: str) -> Any:
        return source.fields[f"llama.{key}"].contents()

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_act": "silu",
        "hidden_size": value("embedding_length"),
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": value("attention.head_count"),
        "num_key_value_heads": value("attention.head_count_kv"),
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "rope_theta": value("rope.freq_base"),
        "vocab_size": value("vocab_size"),
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in source.tensors),
        **_special_ids(source),
    }


def hugging_face_name(name: str) -> str:
    """Return what transformers calls a tensor: of `blk.3.attn_q.bias` `model.layers.3.self_attn.q_proj.bias`."""
    match name.split("."):
        case ["blk", layer, part, kind]:
            return f"model.layers.{layer}.{LAYER_NAMES[part]}.{kind}"
        case [part, kind]:
            return f"{NAMES[part]}.{kind}"
    msg = f"not a tensor of a Llama: {name}"
    raise ValueError(msg)


def save_model(folder: Path, config: dict[str, Any], weights: Weights) -> None:
    """Write the weights, and the JSON files that say what they are."""
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", config)
    ids = {key: config[key] for key in config if key.endswith("_token_id")}
    _write_json(folder / "generation_config.json", ids)


def save_tokenizer(source: Any, folder: Path) -> None:
    """Write the tokenizer of an open GGUF file, and its chat template."""
    fields = source.fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": fields["llama.context_length"].contents(),
            "clean_up_tokenization_spaces": False,
            "chat_template": fields["tokenizer.chat_template"].contents(),
            **{key.removesuffix("_id"): tokens[i] for key, i in _special_ids(source).items()},
        },
    )


def _special_ids(source: Any) -> dict[str, int]:
    names = {"bos": "bos", "eos": "eos", "padding": "pad"}
    return {
        f"{ours}_token_id": source.fields[f"tokenizer.ggml.{theirs}_token_id"].contents()
        for theirs, ours in names.items()
    }


def _unpermuted(tensor: Any, config: dict[str, Any]) -> NDArray[np.float32]:
    """Return a tensor's numbers, with the rows of queries and keys in transformers' order.

    llama.cpp interleaves the two halves of each head for its rotary embedding.
    """
    matrix: NDArray[np.float32] = dequantize(tensor.data, tensor.tensor_type)
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    for part, key in heads.items():
        if f".{part}." in tensor.name:
            rows, columns = matrix.shape
            split = matrix.reshape(config[key], rows // config[key] // 2, 2, columns)
            return np.ascontiguousarray(split.swapaxes(1, 2).reshape(rows, columns))
    return np.ascontiguousarray(matrix)


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
