_base_ = ['./datasets/cifar100_b128.py', './schedules/cifar_b128_160e.py', './mmshared.py']
