/* The seam where a test build makes any call of the system fail. A release build has none. */
#ifndef SHMP_FAULT_H
#define SHMP_FAULT_H

#define SYS_OR(failure, name, arguments) (name arguments)
#define SYS(name, arguments) SYS_OR(-1, name, arguments)

#endif
