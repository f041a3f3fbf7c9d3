"""The recipe's table [distill]: what the methods can be told."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Weight = Annotated[float, Field(ge=0)]


class DistillSection(BaseModel):
    """Temperature; λ of Eq. 1 (kd, takd, dgkd, rmc; the others have no use for it); options of single methods."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        strict=True,
        populate_by_name=True,
        serialize_by_alias=True,
    )

    tau: float = Field(2.0, gt=0)
    lambda_: float = Field(0.5, ge=0, le=1, alias="lambda")
    total: float = Field(1.0, gt=0)
    drop: float = Field(0.0, ge=0, le=1)
    normalise: bool = False
    alpha: float = Field(0.3, ge=0, le=1)
    clip: bool = False
    constants: Annotated[tuple[Weight, Weight, Weight], Field(strict=False)] = (0.5, 0.5, 0.5)
