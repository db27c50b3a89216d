"""In the manner of a GPT-2 tutorial: supervised fine-tuning with Trainer, then PPO with a keyword for a reward.

The import lines and the model's folder are not the tutorial's; the rest is as such programs have it.
"""

import sys

import torch
from torch.utils.data import Dataset

from minirl.classic import (
    AutoModelForCausalLMWithValueHead,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    PPOConfig,
    PPOTrainer,
    Trainer,
    TrainingArguments,
)

model_name, output_dir = sys.argv[1:3]
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# Step 1: supervised fine-tuning
tokenizer = GPT2Tokenizer.from_pretrained(model_name)
tokenizer.pad_token = tokenizer.eos_token
model = GPT2LMHeadModel.from_pretrained(model_name).to(device)
model.config.pad_token_id = tokenizer.eos_token_id

pairs = [
    {"prompt": "Was the film good?", "response": "Yes, it was great."},
    {"prompt": "How was the food?", "response": "It was great too, and cheap."},
]


class PairDataset(Dataset):
    def __init__(self, pairs, tokenizer):
        texts = [pair["prompt"] + " " + pair["response"] + tokenizer.eos_token for pair in pairs]
        self.encodings = tokenizer(texts, truncation=True, padding="max_length", max_length=48, return_tensors="pt")

    def __len__(self):
        return len(self.encodings["input_ids"])

    def __getitem__(self, i):
        item = {key: value[i] for key, value in self.encodings.items()}
        item["labels"] = item["input_ids"].clone()
        return item


training_args = TrainingArguments(
    output_dir=output_dir,
    num_train_epochs=4,
    per_device_train_batch_size=2,
    learning_rate=1e-3,
    logging_steps=1,
    save_strategy="no",
)
trainer = Trainer(model=model, args=training_args, train_dataset=PairDataset(pairs, tokenizer))
train_result = trainer.train()
trainer.save_model(output_dir)
tokenizer.save_pretrained(output_dir)

# Step 2: PPO
ppo_model = AutoModelForCausalLMWithValueHead.from_pretrained(output_dir).to(device)
ref_model = AutoModelForCausalLMWithValueHead.from_pretrained(output_dir).to(device)
config = PPOConfig(batch_size=2, mini_batch_size=1, gradient_accumulation_steps=2, learning_rate=1.41e-5, log_with=None)
ppo_trainer = PPOTrainer(config=config, model=ppo_model, ref_model=ref_model, tokenizer=tokenizer)

generation_kwargs = {
    "min_length": -1,
    "top_k": 0.0,
    "top_p": 1.0,
    "do_sample": True,
    "pad_token_id": tokenizer.eos_token_id,
    "max_new_tokens": 12,
}
for step in range(2):
    query_tensors = [tokenizer.encode(pair["prompt"], return_tensors="pt")[0].to(device) for pair in pairs]
    response_tensors = []
    for query in query_tensors:
        response = ppo_trainer.generate(query, **generation_kwargs)
        response_tensors.append(response.squeeze()[len(query) :])
    texts = [tokenizer.decode(response, skip_special_tokens=True) for response in response_tensors]
    rewards = [torch.tensor(1.0 if "great" in text else 0.0) for text in texts]
    stats = ppo_trainer.step(query_tensors, response_tensors, rewards)
    print(f"step {step}: reward {stats['ppo/mean_scores']:.2f}, KL {stats['objective/kl']:.4f}")

ppo_trainer.save_pretrained(output_dir)
