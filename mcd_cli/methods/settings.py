"""The recipe's table [distill]. Which method reads which key is in the methods' rows."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

ACCEPTED_BY_ALL = ("tau", "lambda")
"""Keys that every method accepts, as a recipe sets them for a whole comparison; some methods ignore them."""

Weight = Annotated[float, Field(ge=0)]


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
    """Temperature τ of every KL term."""
    lambda_: float = Field(0.5, ge=0, le=1, alias="lambda")
    """The teacher's share of the loss, λ."""
    total: float = Field(1.0, gt=0)
    """Total loss weight; kd's is 1."""
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
