# Removes from a folder of installed packages what no server needs, then compiles the rest.
# Usage: trim.sh FOLDER
set -eu
cd "$1"
# Sources of extension modules, type stubs, the packages' own tests.
find . -type d \( -name tests -o -name testing -o -name test \) \
  \( -path './numpy/*' -o -path './pandas/*' -o -path './pyarrow/*' \) -prune -exec rm -rf {} +
find . -type f \( -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.pyi' -o -name '*.c' \
  -o -name '*.h' -o -name '*.a' \) ! -path './tensorflow/*' -delete
rm -rf bin numpy/f2py numpy/distutils numpy/_pyinstaller
# LiteRT's GPU accelerator, compilers for phones' accelerators and converter tools: the
# interpreter on CPUs is libpywrap_litert_common.so and libLiteRt.so.
rm -rf ai_edge_litert/vendors ai_edge_litert/tools ai_edge_litert/libLiteRtWebGpuAccelerator.so \
  ai_edge_litert/aot
# Ray in Java, and what it trains agents and asks language models with.
rm -rf ray/jars ray/rllib ray/llm
# Symbols for debuggers. Only where the wheel's builder left the file as the linker made it:
# patched libraries (numpy's, LiteRT's, TensorFlow's) may not survive.
for package in uvloop httptools; do
  find "./$package" -name '*.so' -exec strip --strip-unneeded {} + 2>/dev/null || true
done
# Byte code of which nothing depends on the time of the build; the root is read-only at run.
python3 -m compileall -q -j 2 --invalidation-mode unchecked-hash . || true
