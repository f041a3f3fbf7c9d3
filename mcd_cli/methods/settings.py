"""The recipe's table [distill]. Which method reads which key is in the methods' rows."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mcd_cli.losses import LOSSES, Term, term

ACCEPTED_BY_ALL = ("tau", "lambda")
"""Keys that every method accepts, as a recipe sets them for a whole comparison; some methods ignore them."""

Weight = Annotated[float, Field(ge=0)]


class LossSection(BaseModel):
    """One loss of a bank; what is left out has the loss's default. `"kd:pooled"` is short for `{loss, follows}`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    loss: str
    """One of [the losses](methods.md#losses)."""
    follows: Literal["teacher", "pooled", "larger"] | None = None
    """Whose logits: the teacher's, the pooled students', or the next larger student's."""
    tau: float | None = Field(None, gt=0)
    """Its temperature."""
    weight: float | None = Field(None, ge=0)
    """Its weight, if no C-NET sets it."""
    ramp: float | None = Field(None, ge=0, le=1)
    """Share of the training over which it grows from 0."""

    @model_validator(mode="before")
    @classmethod
    def _in_short(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        loss, colon, follows = value.partition(":")
        return {"loss": loss, "follows": follows} if colon else {"loss": loss}

    @field_validator("loss")
    @classmethod
    def _known(cls, loss: str) -> str:
        return LOSSES.check(loss)

    @model_validator(mode="after")
    def _labels_have_no_target(self) -> LossSection:
        if not LOSSES[self.loss].follows and (self.follows is not None or self.tau is not None):
            raise ValueError(f"{self.loss} uses only the labels, at temperature 1; remove follows and tau")
        return self

    def term(self, recipe_tau: float) -> Term:
        """recipe_tau: `distill.tau`, the temperature of kd."""
        return term(**self.model_dump(), recipe_tau=recipe_tau)


class DistillSection(BaseModel):
    """Temperature; λ of Eq. 1; options of single methods."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        strict=True,
        populate_by_name=True,
        serialize_by_alias=True,
    )

    tau: float = Field(2.0, gt=0)
    """Temperature τ of kd."""
    lambda_: float = Field(0.5, ge=0, le=1, alias="lambda")
    """The teacher's share of the loss, λ."""
    total: float = Field(1.0, gt=0)
    """Factor on the whole loss."""
    drop: float = Field(0.0, ge=0, le=1)
    """Chance that a larger student is left out as a teacher in a step (the teacher itself never is)."""
    normalise: bool = False
    """Divide by the number of teachers, so that the total weight is kd's."""
    alpha: float = Field(0.3, ge=0, le=1)
    """Smallest factor on the teacher's logits."""
    clip: bool = False
    """Cut the difficulty at its 99th percentile before it is scaled."""
    constants: Annotated[tuple[Weight, Weight, Weight], Field(strict=False)] = (0.5, 0.5, 0.5)
    """The weights (α, β, γ) of the label, the teacher and the pooled students."""
    losses: Annotated[tuple[LossSection, ...], Field(strict=False, min_length=1)] | None = None
    """The bank: a list of [losses](methods.md#losses), such as `["ce", "nckd", "kd:pooled"]`, each a name or a
    table `{loss, follows, tau, weight, ramp}`. Unset: the paper's losses."""

    @field_validator("losses")
    @classmethod
    def _told_apart(cls, losses: tuple[LossSection, ...] | None) -> tuple[LossSection, ...] | None:
        names = [loss.term(1.0).name for loss in losses or ()]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name} is listed twice; remove one of them")
        return losses
