"""ModelService: what state versions are in, and replacing the configuration."""

from __future__ import annotations

import asyncio
from typing import Any

from contract.errors import PermissionDeniedError, RequestError
from contract.wire.plumbline_wire import status_pb2
from serving.inference_handlers import read_model_spec
from serving.model_config import model_configs_from_message
from serving.servable import Manager


class ModelHandlers:
    """The methods of ModelService.

    Args:
        manager: Who holds the servables.
        is_reload_enabled: `--enable_reload_config`.
    """

    def __init__(self, manager: Manager, *, is_reload_enabled: bool) -> None:
        self._manager = manager
        self._is_reload_enabled = is_reload_enabled

    def get_model_status(self, request: Any) -> Any:
        """A GetModelStatusResponse for a GetModelStatusRequest.

        A version label is not looked at, as in TensorFlow Serving
        (`model_servers/get_model_status_impl.cc`).

        Raises:
            RequestError: No ModelSpec.
            ServableNotFoundError: The model or version is not known.
        """
        spec = read_model_spec(request)
        return self.describe_versions(spec.name, spec.version)

    def describe_versions(self, name: str, version: int | None) -> Any:
        """A GetModelStatusResponse of one version of a model, or of all.

        Raises:
            ServableNotFoundError: The model or version is not known.
        """
        response: Any = status_pb2.GetModelStatusResponse()
        for status in self._manager.list_states(name, version):
            one = response.model_version_status.add(version=status.version, state=int(status.state))
            one.status.SetInParent()
            one.status.error_code = int(status.code)
            one.status.error_message = status.message
        return response

    async def reload_config(self, request: Any) -> Any:
        """A ReloadConfigResponse for a ReloadConfigRequest, once new models are AVAILABLE.

        Raises:
            PermissionDeniedError: The server was started without `--enable_reload_config`.
            RequestError: Not a list of models.
            PlumblineError: See `ServableManager.reload`.
        """
        if not self._is_reload_enabled:
            raise PermissionDeniedError(
                "HandleReloadConfigRequest is off; start the server with --enable_reload_config"
            )
        if request.config.WhichOneof("config") != "model_config_list":
            raise RequestError(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only "
                "ModelConfigList is currently supported"
            )
        models = model_configs_from_message(request.config)
        await asyncio.to_thread(self._manager.reload, models)
        response = status_pb2.ReloadConfigResponse()
        response.status.SetInParent()
        for name in request.metric_names:
            response.metric.add(name=name, int64_value_increase=0)
        return response
