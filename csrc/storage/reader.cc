#include "storage/reader.h"
