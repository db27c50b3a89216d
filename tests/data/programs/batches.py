"""In the manner of the sentiment tutorials: batches out of a dataloader, a reward a text, and the statistics of each step.

The import lines, the model's folder and a dataset of four texts are not the tutorial's; the rest is as such programs have it.
"""

import sys

import torch
from tqdm import tqdm

from minirl.classic import (
    AutoModelForCausalLMWithValueHead,
    AutoTokenizer,
    LengthSampler,
    PPOConfig,
    PPOTrainer,
    create_reference_model,
    set_seed,
)

config = PPOConfig(
    model_name=sys.argv[1],
    learning_rate=1.41e-5,
    batch_size=4,
    mini_batch_size=2,
    log_with="wandb",
    optimize_cuda_cache=True,
    early_stopping=True,
    target_kl=0.1,
    ppo_epochs=2,
    seed=3,
)
set_seed(config.seed)

tokenizer = AutoTokenizer.from_pretrained(config.model_name)
tokenizer.pad_token = tokenizer.eos_token


def build_dataset(texts):
    return [{"input_ids": tokenizer.encode(text, return_tensors="pt")[0], "query": text} for text in texts]


def collator(data):
    return dict((key, [d[key] for d in data]) for key in data[0])


dataset = build_dataset(["One day", "Tom and Lily", "Once upon a time", "The old dog", "A bird sat"])
model = AutoModelForCausalLMWithValueHead.from_pretrained(config.model_name, device_map="auto")
ref_model = create_reference_model(model)
ppo_trainer = PPOTrainer(config, model, ref_model, tokenizer, dataset=dataset, data_collator=collator)

device = ppo_trainer.accelerator.device
output_length_sampler = LengthSampler(4, 10)
generation_kwargs = {
    "min_length": -1,
    "top_k": 0.0,
    "top_p": 1.0,
    "do_sample": True,
    "pad_token_id": tokenizer.eos_token_id,
}

history = []
for epoch in range(3):
    for batch in tqdm(ppo_trainer.dataloader, desc=f"epoch {epoch}", disable=True):
        query_tensors = [query.to(device) for query in batch["input_ids"]]
        response_tensors = ppo_trainer.generate(
            query_tensors, return_prompt=False, length_sampler=output_length_sampler, **generation_kwargs
        )
        batch["response"] = tokenizer.batch_decode(response_tensors, skip_special_tokens=True)
        texts = [q + r for q, r in zip(batch["query"], batch["response"], strict=True)]
        rewards = [torch.tensor(text.count("a") / 10) for text in texts]
        stats = ppo_trainer.step(query_tensors, response_tensors, rewards)
        ppo_trainer.log_stats(stats, batch, rewards)
        history.append(stats)
        print(f"reward {stats['ppo/mean_scores']:.3f}, KL {stats['objective/kl']:.4f}")
