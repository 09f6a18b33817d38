"""How a trainer is started and what its exit status says: read by the trainer, written by the operator."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from hmi_api.resources.adapter_limits import AdapterLimits
from hmi_api.security.address_policy import AddressPolicySettings
from hmi_api.security.bearer import TokenSource

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_TRY_AGAIN = 0, 1, 2, 75
"""Done; failed and reported; wrong usage; the control plane did not answer."""
RESULT_FILE = "result.json"
"""In the work folder of a finished run: its result."""
TrainingPrecision = Literal["auto", "float32", "bfloat16"]


class TrainingSettings(AdapterLimits, AddressPolicySettings):
    """Settings of a trainer; every field is also an ``HMI_`` environment variable."""

    model_config = SettingsConfigDict(env_prefix="HMI_", extra="ignore", frozen=True)

    control_plane_url: str | None = Field(
        default=None, description="Where runs are fetched and reported; none: runs are read from --spec."
    )
    internal_token: SecretStr | None = Field(
        default=None, min_length=16, description="Bearer token for the control plane."
    )
    internal_token_file: Path | None = Field(
        default=None, description="File with the bearer token; read again when it is rotated."
    )
    artifacts: str | None = Field(
        default=None,
        description="Root of the artifact store, any fsspec address; none: through the control plane.",
    )
    run_id: str | None = Field(default=None, description="Id of the run to execute.")
    work_dir: Path | None = Field(
        default=None, description="Checkpoints and unfinished files; kept over restarts."
    )
    mounts: Path | None = Field(
        default=None,
        description="Where the ConfigMaps and volume claims are mounted that configmap:// and pvc:// name.",
    )
    training_threads: int = Field(
        default=0,
        ge=0,
        description="CPU threads; 0 for all cores. A run gives the same bits only on "
        "the same number of threads.",
    )
    training_precision: TrainingPrecision = Field(
        default="auto",
        description="Type of a training step's matrix products: bfloat16 (0.4 of the time on CPUs with "
        "AVX512-BF16, slower on others), float32, or auto: bfloat16 where the CPU has it.",
    )
    training_checkpoint_seconds: float = Field(
        default=30.0, ge=0, description="Least time between checkpoints."
    )
    training_report_patience_seconds: float = Field(
        default=3600.0,
        ge=0,
        description="How long a finished run tries to hand in its result before it exits.",
    )

    def token_source(self) -> TokenSource | None:
        """Return the source of the token for the control plane, None when none is set."""
        if self.internal_token_file is not None:
            return TokenSource(file=self.internal_token_file)
        return TokenSource(self.internal_token.get_secret_value()) if self.internal_token else None
