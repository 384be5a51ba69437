# The same variables and ports as the tensorflow/serving image; flags that follow win.

# KServe's word that a container beside this one lays the model down in a moment (a modelcar).
if [ "${MODEL_INIT_MODE:-}" = async ]; then
  until [ -d /mnt/models ]; do sleep 0.1; done
fi
exec python3 -m serving embedded --host=0.0.0.0 --port=8500 --rest_api_port=8501 \
  --model_name="$MODEL_NAME" --model_base_path="$MODEL_BASE_PATH/$MODEL_NAME" "$@"
