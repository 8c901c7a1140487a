// reduce.h: nothing of it is used.
#pragma once
