"""Makes tests/data/models: a tiny model of each family, by the library everybody else uses, and the logits it computes.

    pip install transformers==5.23.0
    python tests/data/make_models.py

Weights are random, norms and biases too, so that nothing can be left out unseen. The rows have three lengths and are
padded on the left. Other versions of transformers and torch write other bits.
"""

import json
import shutil
from pathlib import Path

import torch
import transformers

MODELS = Path(__file__).parent / "models"
ROWS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], [9, 7, 9, 3, 2, 3, 8, 4], [20, 6, 0]]
TOKENS = {"vocab_size": 23, "bos_token_id": 0, "eos_token_id": 1}
SMALL = TOKENS | {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "max_position_embeddings": 200}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 100,  # of the four frequencies one stays, one is between, two are divided
}
CONFIGS = {
    "gpt2": transformers.GPT2Config(n_embd=16, n_inner=24, n_layer=2, n_head=4, n_positions=24, **TOKENS),
    "llama": transformers.LlamaConfig(num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-2, **SMALL),
    "llama3": transformers.LlamaConfig(
        num_attention_heads=2, num_key_value_heads=1, rope_parameters=LLAMA3, tie_word_embeddings=True, **SMALL
    ),
    "qwen2": transformers.Qwen2Config(num_attention_heads=4, num_key_value_heads=2, **SMALL),
    "qwen3": transformers.Qwen3Config(
        num_attention_heads=2, num_key_value_heads=1, head_dim=10, tie_word_embeddings=True, **SMALL
    ),
}


def make(name: str, config) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.4) if p.dim() == 2 else p.add_(0.3 * torch.randn_like(p))
    model.save_pretrained(MODELS / name)
    (MODELS / name / "generation_config.json").unlink()
    width = max(map(len, ROWS))
    starts = torch.tensor([width - len(row) for row in ROWS])
    tokens = torch.tensor([[0] * (width - len(row)) + row for row in ROWS])
    real = torch.arange(width) >= starts[:, None]
    positions = (torch.arange(width) - starts[:, None]).clamp(min=0)
    with torch.no_grad():
        logits = model(tokens, attention_mask=real.long(), position_ids=positions).logits[real]
    golden = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "tokens": tokens.tolist(),
        "starts": starts.tolist(),
        "logits": [[round(x, 5) for x in row] for row in logits.tolist()],  # of the real positions, row after row
    }
    (MODELS / name / "golden.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    shutil.rmtree(MODELS, ignore_errors=True)
    for name, config in CONFIGS.items():
        make(name, config)
