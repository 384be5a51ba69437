#include "litert/c/declarations.h"
