"""Settings that every part needs to speak to the others: the token it shows, and how it checks theirs."""

from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from hmi_api.bearer import TokenSource
from hmi_api.callers import CallerCheck, ServiceAccounts, StaticTokenCheck
from hmi_api.environment import HmiSettings
from hmi_api.token_review import TokenReviewer

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class InternalAuthSettings(HmiSettings):
    """One static token on one machine; service-account tokens and TokenReview on Kubernetes."""

    model_config = SettingsConfigDict(env_prefix="HMI_", env_nested_delimiter="__", extra="ignore")

    internal_token: SecretStr | None = Field(
        default=None, min_length=16, description="What HMI's own parts show one another, where it is one."
    )
    internal_token_file: Path | None = Field(
        default=None, description="File with the token this part shows; read again when it is rotated."
    )
    token_review: bool = Field(
        default=False,
        description="Ask the Kubernetes API server who shows a token, instead of internal_token.",
    )
    token_audience: str = Field(default="hmi-control-plane", description="What reviewed tokens are made for.")
    roles: ServiceAccounts = Field(
        default_factory=ServiceAccounts, description="Which service account each part runs as."
    )
    kubernetes_url: str = Field(
        default="https://kubernetes.default.svc", description="Address of the Kubernetes API server."
    )
    kubernetes_ca_file: Path | None = Field(
        default=_ACCOUNT / "ca.crt", description="Certificate authority of the API server."
    )
    kubernetes_token_file: Path = Field(
        default=_ACCOUNT / "token", description="Token with which this part asks the API server."
    )

    @model_validator(mode="after")
    def _can_check(self) -> Self:
        if self.internal_token is None and not self.token_review:
            raise ValueError("set HMI_INTERNAL_TOKEN, or HMI_TOKEN_REVIEW=true on Kubernetes")
        return self

    @property
    def has_token(self) -> bool:
        """Whether this part has a token to show."""
        return self.internal_token is not None or self.internal_token_file is not None

    def token_source(self) -> TokenSource:
        """Return the source of the token that this part shows; the file goes before the static one."""
        if self.internal_token_file is not None:
            return TokenSource(file=self.internal_token_file)
        if self.internal_token is None:
            raise ValueError("set HMI_INTERNAL_TOKEN or HMI_INTERNAL_TOKEN_FILE")
        return TokenSource(self.internal_token.get_secret_value())

    def caller_check(self) -> CallerCheck:
        """Return what tells this part who calls it."""
        if self.token_review:
            secure = self.kubernetes_url.startswith("https")
            return TokenReviewer(
                self.kubernetes_url,
                TokenSource(file=self.kubernetes_token_file),
                self.roles,
                self.token_audience,
                ca_file=self.kubernetes_ca_file if secure else None,
            )
        if self.internal_token is None:
            raise ValueError("set HMI_INTERNAL_TOKEN or HMI_TOKEN_REVIEW")
        return StaticTokenCheck(self.internal_token.get_secret_value())
