from contract.wire.plumbline_wire import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ShadowRequest(_message.Message):
    __slots__ = ("model_name", "version", "id", "sample", "lease_s", "num_rows")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    version: int
    id: str
    sample: float
    lease_s: float
    num_rows: int
    def __init__(self, model_name: _Optional[str] = ..., version: _Optional[int] = ..., id: _Optional[str] = ..., sample: _Optional[float] = ..., lease_s: _Optional[float] = ..., num_rows: _Optional[int] = ...) -> None: ...

class ShadowRow(_message.Message):
    __slots__ = ("signature_name", "inputs", "before", "after", "max_abs_difference", "is_flipped")
    class InputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _tensor_pb2.TensorProto
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_tensor_pb2.TensorProto, _Mapping]] = ...) -> None: ...
    class BeforeEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _tensor_pb2.TensorProto
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_tensor_pb2.TensorProto, _Mapping]] = ...) -> None: ...
    class AfterEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _tensor_pb2.TensorProto
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_tensor_pb2.TensorProto, _Mapping]] = ...) -> None: ...
    SIGNATURE_NAME_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    MAX_ABS_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    IS_FLIPPED_FIELD_NUMBER: _ClassVar[int]
    signature_name: str
    inputs: _containers.MessageMap[str, _tensor_pb2.TensorProto]
    before: _containers.MessageMap[str, _tensor_pb2.TensorProto]
    after: _containers.MessageMap[str, _tensor_pb2.TensorProto]
    max_abs_difference: float
    is_flipped: bool
    def __init__(self, signature_name: _Optional[str] = ..., inputs: _Optional[_Mapping[str, _tensor_pb2.TensorProto]] = ..., before: _Optional[_Mapping[str, _tensor_pb2.TensorProto]] = ..., after: _Optional[_Mapping[str, _tensor_pb2.TensorProto]] = ..., max_abs_difference: _Optional[float] = ..., is_flipped: _Optional[bool] = ...) -> None: ...

class ShadowResponse(_message.Message):
    __slots__ = ("num_calls", "num_rows", "num_flips", "num_outside", "max_abs_difference", "num_failures", "first_failure", "num_unanswered", "num_dropped", "num_shed", "versions", "before_us", "after_us", "rows")
    NUM_CALLS_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_FLIPS_FIELD_NUMBER: _ClassVar[int]
    NUM_OUTSIDE_FIELD_NUMBER: _ClassVar[int]
    MAX_ABS_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    NUM_FAILURES_FIELD_NUMBER: _ClassVar[int]
    FIRST_FAILURE_FIELD_NUMBER: _ClassVar[int]
    NUM_UNANSWERED_FIELD_NUMBER: _ClassVar[int]
    NUM_DROPPED_FIELD_NUMBER: _ClassVar[int]
    NUM_SHED_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    BEFORE_US_FIELD_NUMBER: _ClassVar[int]
    AFTER_US_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    num_calls: int
    num_rows: int
    num_flips: float
    num_outside: int
    max_abs_difference: float
    num_failures: int
    first_failure: str
    num_unanswered: int
    num_dropped: int
    num_shed: int
    versions: _containers.RepeatedScalarFieldContainer[int]
    before_us: _containers.RepeatedScalarFieldContainer[float]
    after_us: _containers.RepeatedScalarFieldContainer[float]
    rows: _containers.RepeatedCompositeFieldContainer[ShadowRow]
    def __init__(self, num_calls: _Optional[int] = ..., num_rows: _Optional[int] = ..., num_flips: _Optional[float] = ..., num_outside: _Optional[int] = ..., max_abs_difference: _Optional[float] = ..., num_failures: _Optional[int] = ..., first_failure: _Optional[str] = ..., num_unanswered: _Optional[int] = ..., num_dropped: _Optional[int] = ..., num_shed: _Optional[int] = ..., versions: _Optional[_Iterable[int]] = ..., before_us: _Optional[_Iterable[float]] = ..., after_us: _Optional[_Iterable[float]] = ..., rows: _Optional[_Iterable[_Union[ShadowRow, _Mapping]]] = ...) -> None: ...
