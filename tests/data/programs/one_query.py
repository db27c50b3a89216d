"""In the manner of a DeepSeek tutorial: one question at a time, and a reward for the word "safe".

The import line and the model's folder are not the tutorial's; the rest is as such programs have it, two mistakes included:
the response is handed over with the question still in front of it, and the reward reads both.
"""

import sys

from minirl.classic import AutoModelForCausalLMWithValueHead, AutoTokenizer, PPOConfig, PPOTrainer

model_name = sys.argv[1]

tokenizer = AutoTokenizer.from_pretrained(model_name)
tokenizer.pad_token = tokenizer.eos_token
model = AutoModelForCausalLMWithValueHead.from_pretrained(model_name, torch_dtype="auto", trust_remote_code=True)
ref_model = AutoModelForCausalLMWithValueHead.from_pretrained(model_name, torch_dtype="auto", trust_remote_code=True)

config = PPOConfig(model_name=model_name, learning_rate=1e-5, batch_size=4, mini_batch_size=1)
ppo_trainer = PPOTrainer(config, model, ref_model, tokenizer)


def reward_fn(text):
    return 1.0 if "safe" in text.lower() else -1.0


queries = ["Explain AI safety.", "Why is it safer to ask?", "How can a robot be safe?"]
rewards = []
for query in queries:
    inputs = tokenizer(query, return_tensors="pt").to(model.pretrained_model.device)
    response = model.generate(**inputs, max_new_tokens=16, do_sample=True, temperature=0.7, top_p=0.9)
    text = tokenizer.decode(response[0], skip_special_tokens=True)
    rewards.append(reward_fn(text))
    stats = ppo_trainer.step([inputs["input_ids"][0]], [response[0]], [rewards[-1]])
    print(f"{query} -> reward {rewards[-1]:+.0f}, loss {stats['ppo/loss/total']:.4f}, KL {stats['objective/kl']:.4f}")
