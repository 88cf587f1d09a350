# Makes the types of mmshared known, and its Runner the one that trains and tests, also to the tools of mmdet and
# mmpretrain.
custom_imports = dict(imports=['mmshared'], allow_failed_imports=False)
runner_type = 'SharingRunner'
