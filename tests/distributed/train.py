"""What each process of the tests runs: `train.py output_dir tuning scope batch_size accumulation`."""

import json
import sys
from pathlib import Path

import torch
from sharpness.models import make_model
from test_trainer import Images, trainer_for

if __name__ == "__main__":
    folder, tuning, scope, batch_size, accumulation = sys.argv[1:]
    torch.set_num_threads(1)
    model = make_model("dinov2", tuning)
    trainer = trainer_for(
        model, folder, dataset=Images(torch.float64), perturbation_scope=scope, max_steps=20, optim="adamw_torch",
        per_device_train_batch_size=int(batch_size), gradient_accumulation_steps=int(accumulation),
        learning_rate=0.003, seed=0, ddp_find_unused_parameters=tuning == "full",
    )  # fmt: skip
    trainer.train()
    rank = trainer.args.process_index
    torch.save(model.state_dict(), Path(folder) / f"rank{rank}.pt")
    separate_reason = trainer._step.separate_reason
    (Path(folder) / f"rank{rank}.json").write_text(
        json.dumps({"processes": trainer.args.world_size, "separate_reason": separate_reason})
    )
