"""Measures how much of C-NET's meta-gradient depends on what C-NET can see, at three times of training.

    python benchmarks/signal_audit.py --dataset DIR [--recipe benchmarks/signal-audit.toml] [--noise 0.4,0]
        [--batches 32] [--val-batches 12] [--threads 1] [--out benchmarks/results/NAME.json]

C-NET's gradient consists of slopes s_ijc = ⟨v_j, ∇ℓ_ijc⟩ (ops/meta_gradient.py): how fast loss c of image i lowers the
validation loss of student j. Weights that sum to a constant for each image depend only on the contrast d = s_kd − s_ce.
At the first step, at half and at the last one, for each of some training batches, the engine's real step is made, v is
computed on --val-batches mini-batches of val, the slopes along v, and the step is undone. Then:

- ceilings: the correlation of an image's d with its d when measured again. No input can explain more;
- r2: the share of d's variance between the images of a batch that an input explains, by models that were fitted on
  other batches along v of one half of those mini-batches, and are scored along v of the other half;
- gain: the predicted first-order decrease of the validation loss if the sign of the prediction gave each image's whole
  weight to one loss, in % of the decrease by the step with equal weights (meaningless where that is about 0);
- groups: the difference of d between two groups of images, with its 95 % interval over batches, and the number of
  updates of C-NET after which it exceeds two standard errors.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sklearn
import torch
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from mcd_cli.data.loader import Batch
from mcd_cli.engine.coordination import costs
from mcd_cli.engine.run import Run, RunOptions
from mcd_cli.engine.trainer import Trainer
from mcd_cli.ladder.folder import RunFolder
from mcd_cli.ladder.metrics import WARM_START
from mcd_cli.losses.bank import instance_losses
from mcd_cli.methods.base import TEACHER
from mcd_cli.ops import meta_gradient
from mcd_cli.recipe.loading import load_recipe

Array = npt.NDArray[np.float64]

FOLDS = 4
CE, KD = 0, 1  # the losses of method kd
SMALL = 32  # inputs with at most so many columns are also given to gradient boosting


def times_of(trainer: Trainer) -> dict[int, str]:
    """The steps before which training pauses."""
    return {0: "start", trainer.num_steps // 2: "half", trainer.num_steps - 1: "end"}


def batch_of(trainer: Trainer, ids: Tensor, view: int) -> Batch:
    """These training images in one batch, augmented as in that view."""
    loader = trainer.loader
    images = loader.augmentation(loader.pixels.take(ids), loader._draws(view)[ids])
    return loader._batch(ids, images, len(ids))


def slopes(trainer: Trainer, batch: Batch, z_teacher: Tensor, val: list[Batch], first: int) -> Tensor:
    """s [4, n, k, c] along v of: a mini-batch of the first half of val, one of the second, each half as a whole.

    first: the former's index, even: the first half consists of every other mini-batch. The real step is made, as in
    the engine's meta step, and undone.
    """
    students, optimizer = trainer.students, trainer.optimizer
    saved = copy.deepcopy((students.state_dict(), optimizer.state_dict()))
    theta = {name: p.detach().clone() for name, p in students.named_parameters()}
    trainer.learning_rate.set(trainer.step_index)
    losses_of, _ = trainer._descend(batch, z_teacher, autocast=False)
    optimizer.zero_grad()
    gradients = [meta_gradient.validation_gradient(students, b.images, b.labels) for b in val]
    students.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])

    def mean(some: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([v[name] for v in some]).mean(dim=0) for name in theta}

    directions = [gradients[first], gradients[first + 1], mean(gradients[0::2]), mean(gradients[1::2])]
    along = [meta_gradient.directional_losses(students, theta, v, batch.images, losses_of) for v in directions]
    return torch.stack(along)


def looked_at(trainer: Trainer, batch: Batch, z_teacher: Tensor) -> dict[str, Tensor]:
    """Candidate inputs of C-NET by name, each [n, columns], from the same forward pass as the losses of the step."""
    students, x, y = trainer.students, batch.images, batch.labels
    pooled: list[Tensor] = []
    hooks = [
        network.fc.register_forward_pre_hook(lambda module, inputs: pooled.append(inputs[0]))  # type: ignore[union-attr]
        for network in students.networks.values()
    ]
    with torch.no_grad():
        z = meta_gradient.without_side_effects(students, dict(students.named_parameters()), x)
    for hook in hooks:
        hook.remove()
    t = z_teacher.float()
    losses = instance_losses(z, y, t[:, None, None], trainer.bank)
    losses = costs(losses, {TEACHER: t}, y).clamp(min=0).log1p()  # as LossCoordinator sees them
    agree = (z.argmax(-1) == t.argmax(-1)[:, None]).float()
    steep = (x[:, :, 1:] - x[:, :, :-1]).abs().mean((1, 2, 3)), (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3))
    inputs = {
        "losses (C-NET's input)": losses,
        "teacher's confidence": confidence(t[:, None], y),
        "students' confidence": confidence(z, y),
        "agreement of teacher and students": agree,
        "image statistics": torch.cat([x.mean((2, 3)), x.std((2, 3)), torch.stack(steep, dim=1)], dim=1),
        "class of the label": torch.nn.functional.one_hot(y, z.shape[-1]).float(),
        "students' pooled features": torch.cat(pooled, dim=1),
    }
    inputs["all of these"] = torch.cat(list(inputs.values()), dim=1)
    inputs["true noise flag"] = trainer.loader.dataset.mislabelled[batch.ids][:, None].float()
    right = (z.argmax(-1) == y[:, None]).float()
    inputs["groups"] = torch.cat([inputs["true noise flag"], (t.argmax(-1) == y)[:, None].float(), right, agree], dim=1)
    return inputs


def confidence(z: Tensor, y: Tensor) -> Tensor:
    """Per row of logits [n, m, C]: entropy, probability of the label, largest one, whether they are the same."""
    p = z.softmax(-1)
    entropy = -(p * z.log_softmax(-1)).sum(-1)
    of_label = p.gather(-1, y[:, None, None].expand(-1, z.shape[1], 1)).squeeze(-1)
    return torch.stack([entropy, of_label, p.amax(-1), (z.argmax(-1) == y[:, None]).float()], dim=-1).flatten(1)


def measured(
    trainer: Trainer, ids: Tensor, view: int, val: list[Batch], with_inputs: bool
) -> tuple[Array, dict[str, Array]]:
    """Slopes [4, N, k, c] and inputs of N images, in batches of the recipe's size, in the order of ids."""
    assert trainer.teacher_logits is not None
    logits = trainer.teacher_logits(view)
    all_slopes, all_inputs = [], []
    for number, some in enumerate(ids.split(trainer.loader.batch_size)):
        batch, z_teacher = batch_of(trainer, some, view), logits[some].float()
        if with_inputs:
            all_inputs.append(looked_at(trainer, batch, z_teacher))
        all_slopes.append(slopes(trainer, batch, z_teacher, val, 2 * number % len(val)))
    inputs = {name: torch.cat([i[name] for i in all_inputs]).double().numpy() for name in (all_inputs or [{}])[0]}
    return torch.cat(all_slopes, dim=1).double().numpy(), inputs


def centred(a: Array, size: int) -> Array:
    """a [N, …] minus the mean of its batch of `size` images: what differs between the images of a batch."""
    batches = a.reshape(-1, size, *a.shape[1:])
    return (batches - batches.mean(axis=1, keepdims=True)).reshape(a.shape)  # type: ignore[no-any-return]


def correlation(a: Array, b: Array) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def out_of_batch(x: Array, d: Array, size: int, model: Callable[[], Any]) -> Array:
    """Predictions of d [N] for whole batches, by models fitted on the others. x: [N, columns]."""
    number = np.arange(len(d)) // size
    fold = number * FOLDS // (number[-1] + 1)
    predicted = np.empty_like(d)
    for f in range(FOLDS):
        predicted[fold == f] = model().fit(x[fold != f], d[fold != f]).predict(x[fold == f])
    return centred(predicted, size)


def r2(d: Array, predicted: Array, size: int) -> dict[str, float]:
    """The share of the variance of d [2 N] that is predicted, in %, with its standard error.

    The images are there twice, for the two halves of val; the error is by the jackknife over batches.
    """
    error, total = (a.reshape(2, -1, size).sum(axis=(0, 2)) for a in ((d - predicted) ** 2, d**2))
    left_out = 1 - (error.sum() - error) / (total.sum() - total)
    b = len(error)
    return {"percent": 100 * (1 - error.sum() / total.sum()), "se": 100 * math.sqrt((b - 1) * left_out.var())}


def ridge() -> Any:
    return make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(0, 5, 11)))


def boosting() -> Any:
    return HistGradientBoostingRegressor(max_depth=3, max_iter=60, learning_rate=0.05, random_state=0)


def explained(
    inputs: dict[str, Array], ones: tuple[Array, Array], halves: tuple[Array, Array], step: float, size: int
) -> Iterator[dict[str, Any]]:
    """A row for each input, fitted along v of one half of val and scored along v of the other, both ways.

    ones, halves: d [N] along v of a mini-batch of each half, and of the halves; step: mean of Σ_c s.
    """
    targets = np.concatenate(halves[::-1]), np.concatenate(ones[::-1])
    shuffled = np.random.default_rng(0).permutation(len(halves[0]))
    candidates = inputs | {"all of these, of other images": inputs["all of these"][shuffled]}
    for name, x in candidates.items():
        if name == "groups" or not x.std(axis=0).any():  # no label is wrong
            continue
        x = centred(x, size)
        for model in (ridge, boosting)[: 1 + (x.shape[1] <= SMALL)]:
            predicted = np.concatenate([out_of_batch(x, half, size, model) for half in halves])
            yield {
                "input": name,
                "columns": x.shape[1],
                "model": model.__name__,
                "r2": r2(targets[0], predicted, size),
                "r2_one_val_batch": r2(targets[1], predicted, size),
                "gain": 100 * float((np.sign(predicted) * targets[0]).mean()) / step,
            }


def groups(flags: Array, names: list[str], one: Array, whole: Array, size: int) -> Iterator[Any]:
    """Group differences of d. one, whole: d [N], not centred, along v of a mini-batch of val, and of all of them."""
    sd = centred(whole, size).std()
    for column, name in enumerate(names):
        inside = flags[:, column].reshape(-1, size) > 0
        if not inside.any() or inside.all():
            continue
        both = inside.any(axis=1) & ~inside.all(axis=1)
        inside = inside[both]

        def difference(d: Array, inside: npt.NDArray[np.bool_] = inside, both: Any = both) -> Array:
            """Mean inside minus mean outside, batch by batch."""
            rows = d.reshape(-1, size)[both]
            result: Array = (rows * inside).sum(1) / inside.sum(1) - (rows * ~inside).sum(1) / (~inside).sum(1)
            return result

        of_all, of_one = difference(whole), difference(one)
        half_width = 1.96 * of_all.std(ddof=1) / math.sqrt(len(of_all))
        yield {
            "group": name,
            "share": float(flags[:, column].mean()),
            "mean_inside": float(whole[flags[:, column] > 0].mean()),
            "mean_outside": float(whole[flags[:, column] == 0].mean()),
            "difference": float(of_all.mean()),
            "low": float(of_all.mean() - half_width),
            "high": float(of_all.mean() + half_width),
            "in_sd_between_images": float(of_all.mean() / sd),
            "updates_until_two_se": math.ceil((2 * of_one.std(ddof=1) / of_one.mean()) ** 2),
        }


def audit(trainer: Trainer, num_batches: int, val: list[Batch], earlier: dict[str, Array]) -> dict[str, Any]:
    """All figures of one time of training. earlier: d of the same images at earlier times, which is extended."""
    size = trainer.loader.batch_size
    train = trainer.loader.dataset.train
    pick = torch.Generator().manual_seed(0)
    ids = train[torch.randperm(len(train), generator=pick)[: num_batches * size]]
    order = torch.randperm(num_batches // 2 * size, generator=pick)  # half of them, again, among other images
    s, inputs = measured(trainer, ids, 0, val, with_inputs=True)
    again, _ = measured(trainer, ids[order], 0, val, with_inputs=False)
    other_view, _ = measured(trainer, ids[order], 1, val, with_inputs=False)
    names = ["label is wrong", "teacher is right"]
    names += [f"{student} is right" for student in trainer.students.names]
    names += [f"{student} agrees with the teacher" for student in trainer.students.names]
    students = {}
    for j, student in enumerate(trainer.students.names):
        raw = s[:, :, j, KD] - s[:, :, j, CE]  # [4, N]
        one, another, a, b = (centred(d, size) for d in raw)
        whole = (a + b) / 2
        twice, viewed = (centred(m[2:, :, j, KD].mean(0) - m[2:, :, j, CE].mean(0), size) for m in (again, other_view))
        step = float(s[2:, :, j].sum(-1).mean())  # equal weights: Σ_c s
        ceilings = {
            "another mini-batch of val": correlation(one, another),
            "the other half of val": correlation(a, b),
            "other images in the batch": correlation(whole[order], twice),
            "other images in the batch, another view": correlation(whole[order], viewed),
        }
        ceilings |= {f"at the {time}": correlation(whole, d[j]) for time, d in earlier.items()}
        students[student] = {
            "ceilings": ceilings,
            "mean": {
                "ce": float(s[2:, :, j, CE].mean()),
                "kd": float(s[2:, :, j, KD].mean()),
                "kd_minus_ce": float(raw[2:].mean()),
            },
            "sd_between_images": {"one_val_batch": float(one.std()), "whole_val": float(whole.std())},
            "gain_of_a_constant": 100 * abs(float(raw[2:].mean())) / step,
            "gain_if_d_were_known": 100 * float((np.sign(a) * b).mean()) / step,
            "explained": list(explained(inputs, (one, another), (a, b), step, size)),
            "groups": list(groups(inputs["groups"], names, raw[0], raw[2:].mean(0), size)),
            "groups_ce": list(groups(inputs["groups"], names, s[0, :, j, CE], s[2:, :, j, CE].mean(0), size)),
            "groups_kd": list(groups(inputs["groups"], names, s[0, :, j, KD], s[2:, :, j, KD].mean(0), size)),
        }
    earlier[times_of(trainer)[trainer.step_index]] = np.stack(
        [centred(s[2:, :, j, KD].mean(0) - s[2:, :, j, CE].mean(0), size) for j in range(s.shape[2])]
    )
    return {"step": trainer.step_index, "lr": trainer.learning_rate.at(trainer.step_index), "students": students}


def condition(args: argparse.Namespace, noise: float, note: Callable[[dict[str, Any]], None]) -> None:
    """Train with that label noise and pass the result to `note` each time that it has grown."""
    recipe = load_recipe(args.recipe, {"dataset": args.dataset, "label_noise": noise})
    with tempfile.TemporaryDirectory() as place, RunFolder.create(place, recipe) as folder:
        run = Run(recipe, folder, RunOptions(device="cpu", threads=args.threads), lambda event: None)
        run.start(WARM_START)
        trainer = run.trainer(run.plans[-1])
        trainer.prepare()
        val = [trainer.loader.validation_batch(update) for update in range(args.val_batches)]
        result: dict[str, Any] = {
            "label_noise": noise,
            "seed": recipe.seed,
            "images": args.batches * recipe.batch_size,
            "batches": args.batches,
            "val_images": args.val_batches * recipe.batch_size,
            "hardware": run.hardware.describe(),
            "times": {},
        }
        times = times_of(trainer)
        earlier: dict[str, Array] = {}

        def pause() -> None:
            if trainer.step_index in times:
                result["times"][times[trainer.step_index]] = audit(trainer, args.batches, val, earlier)
                note(result)

        pause()
        for steps in trainer.epochs():
            for _ in steps:
                pause()
            record = trainer.end_epoch()
            result["val_accuracy"] = {name: 100 * s.val_accuracy for name, s in record.students.items()}
        note(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=str(Path(__file__).with_name("signal-audit.toml")))
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--noise", default="0.4,0")
    parser.add_argument("--batches", type=int, default=32)
    parser.add_argument("--val-batches", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.batches < 2 * FOLDS or args.val_batches < 2 or args.val_batches % 2:
        parser.error(f"--batches takes {2 * FOLDS} or more, --val-batches an even number")
    versions = {"python": platform.python_version(), "torch": torch.__version__, "scikit-learn": sklearn.__version__}
    document: dict[str, Any] = {"versions": versions, "cores": os.cpu_count(), "conditions": {}}
    if args.out and args.out.exists():  # a condition measured before stays
        document["conditions"] = json.loads(args.out.read_text(encoding="utf-8"))["conditions"]
    for noise in map(float, args.noise.split(",")):

        def note(result: dict[str, Any], noise: float = noise) -> None:
            document["conditions"][f"{noise:g}"] = result
            if args.out:
                args.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

        condition(args, noise, note)
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
