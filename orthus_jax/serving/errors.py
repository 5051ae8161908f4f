"""Errors as OpenAI's API has them: a status, and JSON with a sentence that helps."""

from __future__ import annotations

from starlette.responses import JSONResponse

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
  """A request that isn't served.

  Attributes:
    status: of HTTP.
    message: what is wrong, and what to do.
    param: the field it is about.
    retry_after: seconds after which to ask again.
  """

  def __init__(self, status: int, message: str, *, param: str | None = None, retry_after: int | None = None):
    super().__init__(message)
    self.status, self.message, self.param, self.retry_after = status, message, param, retry_after

  def to_json(self) -> dict:
    kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
    # What a body says may be no Unicode (half of a surrogate pair), which no answer can hold.
    message, param = (x and x.encode("utf-8", "backslashreplace").decode() for x in (self.message, self.param))
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}

  def response(self) -> JSONResponse:
    headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
    if self.status == 504:
      headers["x-should-retry"] = "false"  # the official clients ask again by themselves, and it would take as long
    return JSONResponse(self.to_json(), self.status, headers=headers)
